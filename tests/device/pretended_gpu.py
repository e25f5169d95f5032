"""A pytest plugin (``-p pretended_gpu``): the emulator in the place of numba.cuda's GPU.

With it the tests of a GPU run where there is none; what they then show is that they would run.
"""

from __future__ import annotations

from emulated import EmulatedBackend, EmulatedDevice, missing

import convjit_numba_cuda

convjit_numba_cuda.CudaDevice = EmulatedDevice  # type: ignore[misc, assignment]
convjit_numba_cuda.NumbaCudaBackend.array_types = EmulatedBackend.array_types
convjit_numba_cuda.unavailable = missing
