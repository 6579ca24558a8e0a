"""What holds for every test: Ctrl-C interrupts, also where the tests are run in the background.

A shell that starts a command with `&` in a script lets it ignore SIGINT, and all that it starts: nothing would be interrupted.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
