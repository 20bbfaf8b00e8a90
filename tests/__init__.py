"""The tests, by kind; a package so that its development tools start as `python -m tests.mtproto`."""
