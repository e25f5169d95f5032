"""Runs PTX on the CPU: what tests of GPU kernels need where there is no GPU.

PTX is translated to C++, one statement for an instruction, and compiled by g++.  Each CUDA thread
is a fiber, blocks run one after the other, and a barrier is a switch to the scheduler.  ``parser``
reads PTX; ``arithmetic``, ``movement``, ``matrix`` and ``control`` translate a group each;
``runtime/`` is what the C++ includes; ``build`` compiles and keeps; ``launch`` runs.

In checked mode a launch fails at the first race or uninitialised read in shared memory, access out
of bounds or misaligned, or barrier that not all threads reach, and counts what each instruction
did: executions, conflicts between banks, sectors.

It says nothing about time.  Machine code is not run, only PTX; races between blocks are not seen;
approximate instructions use the host's mathematics.
"""

from ptxcpu.build import missing as missing
from ptxcpu.launch import Counts as Counts
from ptxcpu.launch import Fault as Fault
from ptxcpu.launch import Module as Module
from ptxcpu.launch import empty as empty
from ptxcpu.launch import forget_counts as forget_counts
from ptxcpu.parser import Unsupported as Unsupported
