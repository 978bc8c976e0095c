"""Trainings with seeds, what they reached, and what that says."""
