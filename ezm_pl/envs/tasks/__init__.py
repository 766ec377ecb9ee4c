"""The tasks: one file per family, what they share (rewards, scene), and dm_control's suite."""
