"""The robots, and the environment around a robot in a task."""
