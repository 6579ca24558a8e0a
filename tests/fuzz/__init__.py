"""Mutation fuzzing of everything that reads a stranger's bytes: small valid files, damaged at random, again and again.

    python -m tests.fuzz --minutes 1                               all readers, a share of the time each
    python -m tests.fuzz --reader torch --inputs 100000 --start 0  a reader, so many inputs, from that number on
    python -m tests.fuzz --reader torch --replay FILE              one input again

Input number n of a reader is always the same bytes. The only outcomes allowed are success and the documented errors, which
name the file; no input may take 2 s of processor time or 64 MB more memory than the reader had before. Inputs run in a child
process, so a crash or a hang is an outcome, too. What breaks a rule is written to `fuzz-defects/`, and the exit status is 1.
"""
