"""What each command of ``rankscope`` does, beside its options: call, print.

A command takes the options that ``cli.parser`` read and returns the exit status. Results go to
standard output, progress to standard error. Imports stand inside the functions, so that
``rankscope --help`` loads no torch. The texts after ``help=`` are the command line's reference:
docs/cli.md is made of them.
"""
