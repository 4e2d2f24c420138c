#!/bin/bash
# A recipe on one machine, with a process for each of its GPUs: recipes/launch/one-node.sh recipe.yaml [--processes N]
# Where a process dies (1), the same command goes on from what was done, three times at most. A stop (SIGTERM, Ctrl-C) is
# passed on, leaves a checkpoint and ends with 75: start this again to go on. What is wrong with the recipe (2) ends it.
stopped=
trap 'stopped=1; [ -n "$work" ] && kill -TERM "$work"' TERM INT
for _ in 1 2 3; do
  work=
  align launch "$@" &
  work=$!
  [ -n "$stopped" ] && kill -TERM "$work" # the signal came before the work had a number to pass it on to
  while kill -0 "$work" 2>/dev/null; do # a signal ends the wait, not the work
    wait "$work"
  done
  wait "$work"
  code=$?
  [ "$code" -eq 1 ] && [ -z "$stopped" ] || break
done
exit "$code"
