"""Benchmarks from the command line: convjit beside its peers on real layers, images and signals.

``cases`` names the problems, ``engines`` has one maker for each library, ``worker`` is the process
that an engine lives in, ``runner`` lets the engines take turns, ``verify`` checks their results,
and ``report`` makes tables.  ``family`` sweeps the kernel size of a layer, ``plot`` draws the
roofline and the sweeps.  ``networks.json`` holds the convolutions of real networks.
"""
