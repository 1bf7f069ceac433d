"""Lessons: one idea a file, in the order of their numbers. Run them as `python -m examples.lessons.01_perceptron`."""
