"""Looking on: runs of a store, those at work and those that are done, in a terminal and on a local page. Knows no
torch, and changes nothing in the store."""
