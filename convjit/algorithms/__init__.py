"""The mathematics that every backend shares: NumPy and fractions only, no kernel, no device."""
