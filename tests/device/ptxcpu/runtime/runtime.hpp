// Included by every translated module, and compiled once before.
#include "matrix.hpp"
