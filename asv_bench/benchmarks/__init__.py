"""Benchmarks of convjit for asv: times, memory, accuracy and regret of named problems."""
