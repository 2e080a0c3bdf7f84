#!/bin/sh
# Runs its arguments as a child, as many start scripts do: no exec, so that the shell stays between.
"$@"
status=$?
echo "wrapper: the command ended with $status" >&2
exit $status
