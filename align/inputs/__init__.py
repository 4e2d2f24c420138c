"""Inputs: what a stage is given, found and checked before anything heavy."""
