"""What tests share: Ctrl-C interrupts, also where the tests are run in the background; and as many cores as are wanted.

A shell that starts a command with `&` in a script lets it ignore SIGINT, and all that it starts: nothing would be interrupted.
"""

import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def many_cores(monkeypatch):
    """Compiled networks start as many threads as a test asks for, whatever this machine has."""
    monkeypatch.setattr("effnet_np.kernels.pool.usable", lambda: 64)
