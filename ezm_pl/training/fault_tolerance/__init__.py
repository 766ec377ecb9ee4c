"""What exists only so that a run survives, and nothing of the algorithm.

`saving` writes the checkpoints from a thread and keeps a valid one on disk at every instant; `checkpoint`
says what a checkpoint file holds and reads it back; `checkpoint_io` is how Lightning's saves reach it.
`stopping` answers Ctrl-C with an orderly end. `launch` finds out which rank this process is, `rendezvous`
waits until all ranks have come, and `connection` joins them and ends all of them where one has died.
`skipped` explains why updates were skipped. Without this folder a run would do the same updates, until its
first fault.
"""
