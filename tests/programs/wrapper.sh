#!/bin/sh
# Runs its arguments as a child, as many start scripts do: without exec, so that the shell stays the parent.
"$@"
status=$?
echo "wrapper: the command ended with $status" >&2
exit $status
