#!/bin/sh
# What the image starts: the server takes this process's place, so that it gets the signals and its exit status counts.
exec vramblk "$@"
