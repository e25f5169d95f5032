// Included by every translated module, and compiled once before.
#include "warp.hpp"
