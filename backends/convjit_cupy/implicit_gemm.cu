// Implicit GEMM that multiplies and adds, or in double precision on tensor cores: see the solver.
//
// Macros: REAL; WARPS_K by WARPS_P of a block; DEPTH of a step; TENSOR, whether tensor cores
// multiply; MASK, bits of a mask; PIECE, positions that are copied together.

using Real = REAL;

constexpr unsigned VECTOR = 16 / sizeof(Real);  // of the widest copy
constexpr unsigned THREADS = 32 * WARPS_K * WARPS_P;
constexpr unsigned TILE_K = 32 * WARPS_K, TILE_P = 64 * WARPS_P;
constexpr unsigned STAGE = DEPTH * (TILE_K + TILE_P);
constexpr unsigned PIECES = TILE_P / PIECE;         // of the positions of a tile
constexpr unsigned AT_ONCE = THREADS / PIECES;      // depths that the block copies at once
constexpr unsigned OWN = DEPTH / AT_ONCE;           // neighbouring depths of a thread
constexpr unsigned WEIGHTS = DEPTH * TILE_K / VECTOR / THREADS;

struct alignas(16) Vector { Real at[VECTOR]; };

// The table has of four depths their offsets, then the lower words of their bits, then the upper
// ones.  The two highest bits are that of a real depth, and of one beyond the last.
constexpr unsigned WORDS = 1 + MASK / 32;
constexpr unsigned TOGETHER = OWN < 4 ? OWN : 4;
struct alignas(4 * TOGETHER) Several { unsigned at[TOGETHER]; };
__device__ __forceinline__ Several several_at(const unsigned *from) {
    return *reinterpret_cast<const Several *>(from);
}

__device__ __forceinline__ Vector vector_at(const Real *from) {
    return *reinterpret_cast<const Vector *>(from);
}

// A thread's sums: OUTS outputs by vectors of neighbouring positions, where in the warp's tile they
// are, and what a step adds to them out of its weights and samples.
#if TENSOR
// Lane 4 n + t has of a product the weights of output n and the samples of position n, both at the
// depth t, and the sums of output n at the positions 2 t and 2 t + 1; one of 16 outputs is two.
// Positions of two products are put in such an order that what a lane loads for both is a vector,
// and what lanes write of an output are neighbours: position 2 t + e of product h is 8 e + 2 t + h
// of the sixteen.  Weights are packed in the order of the lanes; four depths of samples would lie
// in the same banks, and so are moved to columns that differ by 2 t bitwise.
constexpr unsigned OUTS = 4, VECTORS = 8;
__device__ __forceinline__ unsigned out_of(unsigned lane, unsigned i) { return lane / 4 + 8 * i; }
__device__ __forceinline__ unsigned place_of(unsigned lane, unsigned v) {
    return v * 8 + lane % 4 * 2;
}
__device__ __forceinline__ unsigned moved(unsigned place, unsigned depth) {
    return place ^ depth % 4 * VECTOR * sizeof(Real);
}
__device__ __forceinline__ void multiply(
    Real (&sums)[OUTS][VECTORS * VECTOR], const Real *weights, const Real *samples, unsigned warp,
    unsigned lane
) {
    weights += warp / WARPS_P * 128 + lane * VECTOR;
    const unsigned n = lane / 4, t = lane % 4;
    samples += t * TILE_P + warp % WARPS_P * 64 + (n % 2 * 8 + (n / 2 ^ t) * VECTOR);
#pragma unroll
    for (unsigned depth = 0; depth < DEPTH; depth += 4) {
        Vector a[OUTS / 2], b[VECTORS / 2];
#pragma unroll
        for (unsigned i = 0; i < OUTS / 2; i++)
            a[i] = vector_at(weights + depth * TILE_K + i * 64);
#pragma unroll
        for (unsigned j = 0; j < VECTORS / 2; j++)
            b[j] = vector_at(samples + depth * TILE_P + j * 16);
#pragma unroll
        for (unsigned i = 0; i < OUTS; i += __CUDA_ARCH__ >= 900 ? 2 : 1)
#pragma unroll
            for (unsigned j = 0; j < VECTORS; j++) {
                Real *const sum = sums[i] + j / 2 * 4 + j % 2;
                const Real by = b[j / 2].at[j % 2];
#if __CUDA_ARCH__ >= 900
                Real *const below = sums[i + 1] + j / 2 * 4 + j % 2;
                asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 "
                    "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                    : "+d"(sum[0]), "+d"(sum[2]), "+d"(below[0]), "+d"(below[2])
                    : "d"(a[i / 2].at[0]), "d"(a[i / 2].at[1]), "d"(by));
#else
                asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 "
                    "{%0, %1}, {%2}, {%3}, {%0, %1};"
                    : "+d"(sum[0]), "+d"(sum[2]) : "d"(a[i / 2].at[i % 2]), "d"(by));
#endif
            }
    }
}
#else
constexpr unsigned OUTS = 8, VECTORS = 8 / VECTOR;
__device__ __forceinline__ unsigned out_of(unsigned lane, unsigned i) { return lane / 8 * 8 + i; }
__device__ __forceinline__ unsigned place_of(unsigned lane, unsigned v) {
    return (v * 8 + lane % 8) * VECTOR;
}
__device__ __forceinline__ unsigned moved(unsigned place, unsigned) { return place; }
__device__ __forceinline__ void multiply(
    Real (&sums)[OUTS][VECTORS * VECTOR], const Real *weights, const Real *samples, unsigned warp,
    unsigned lane
) {
    weights += warp / WARPS_P * 32 + out_of(lane, 0);
    samples += warp % WARPS_P * 64 + place_of(lane, 0);
#pragma unroll
    for (unsigned depth = 0; depth < DEPTH; depth++) {
        Vector a[VECTORS], b[VECTORS];
#pragma unroll
        for (unsigned g = 0; g < VECTORS; g++) {
            a[g] = vector_at(weights + depth * TILE_K + g * VECTOR);
            b[g] = vector_at(samples + depth * TILE_P + g * 8 * VECTOR);
        }
#pragma unroll
        for (unsigned i = 0; i < 8; i++)
#pragma unroll
            for (unsigned j = 0; j < 8; j++)
                sums[i][j] += a[i / VECTOR].at[i % VECTOR] * b[j / VECTOR].at[j % VECTOR];
    }
}
#endif

struct Axis { unsigned bits, size, out, stride, pad, dilation; };

// The bits of the taps that lie outside for an output's place on an axis.
__device__ __forceinline__ Mask outside(const Axis axis, unsigned place, unsigned first) {
    Mask mask = 0;
#pragma unroll 1
    for (unsigned tap = 0; tap < axis.bits; tap++)
        if (place * axis.stride - axis.pad + tap * axis.dilation >= axis.size)
            mask |= Mask(1) << (first + tap);
    return mask;
}

#define AXIS(z) unsigned bits_##z, unsigned size_##z, unsigned out_##z, unsigned stride_##z, \
                unsigned pad_##z, unsigned dilation_##z
#define OF(z) {bits_##z, size_##z, out_##z, stride_##z, pad_##z, dilation_##z}

// A multiprocessor holds 512 threads at least, in double precision 256; as many as it may where
// copies take registers.
#if __CUDA_ARCH__ >= 800
#define BOUNDS THREADS, 2048 / sizeof(Real) / THREADS
#else
#define BOUNDS THREADS
#endif
extern "C" __global__ void __launch_bounds__(BOUNDS) implicit_gemm(
    const Real *__restrict__ x, const Real *__restrict__ w, const unsigned *__restrict__ table,
    const Real *__restrict__ bias, Real *__restrict__ y, unsigned positions,
    unsigned all_steps, unsigned each, unsigned outputs, unsigned groups, unsigned image,
    unsigned pixels, unsigned tiles_p, unsigned tiles_k, AXIS(z), AXIS(y), AXIS(x), Real slope,
    Real lowest, Real highest
) {
    __shared__ __align__(128) Real memory[2 * STAGE];  // of a stage: weights, samples
    const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    unsigned block = blockIdx.x;
    const unsigned first_p = block % tiles_p * TILE_P;
    block /= tiles_p;
    const unsigned tile_k = block % tiles_k;
    block /= tiles_k;
    const unsigned group = block % groups, part = block / groups;
    unsigned steps = min(each, all_steps - part * each);

    // What this thread copies: weights one after the other, samples of one position (of several
    // neighbours where PIECE is more than 1).
    const unsigned panel = group * tiles_k + tile_k;
    const Real *weight = w + (size_t(panel) * all_steps + part * each) * (DEPTH * TILE_K)
                           + thread * VECTOR;
    const unsigned column = thread % PIECES * PIECE, row = thread / PIECES * OWN;
    const unsigned *entry = table + (part * each * DEPTH + row) / 4 * 4 * WORDS + row % 4;
    Mask mask = ~Mask(0);
    const Real *corner = x;
    if (first_p + column < positions) {
        const Axis axes[3] = {OF(z), OF(y), OF(x)};
        const unsigned n = (first_p + column) / pixels;
        unsigned pixel = (first_p + column) % pixels;
        const unsigned at_x = pixel % out_x;
        pixel /= out_x;
        const unsigned at_y = pixel % out_y, at_z = pixel / out_y;
        mask = Mask(1) << (MASK - 1) | outside(axes[0], at_z, 0) | outside(axes[1], at_y, bits_z)
             | outside(axes[2], at_x, bits_z + bits_y);
        corner += int((n * groups + group) * image
                      + ((at_z * stride_z - pad_z) * size_y + at_y * stride_y - pad_y) * size_x
                      + at_x * stride_x - pad_x);
    }
    const unsigned shared = shared_address(memory);
    const unsigned weights_at = shared + thread * VECTOR * sizeof(Real);
    const unsigned samples_at = shared + (DEPTH * TILE_K + row * TILE_P + column) * sizeof(Real);
    auto fetch = [&](unsigned stage) {
        const unsigned weights = weights_at + stage * sizeof(Real);
#pragma unroll
        for (unsigned i = 0; i < WEIGHTS; i++)
            copy_async<16>(weights + i * THREADS * 16, weight + i * THREADS * VECTOR);
        const unsigned samples = samples_at + stage * sizeof(Real);
#pragma unroll
        for (unsigned i = 0; i < OWN; i += TOGETHER) {
            const Several offsets = several_at(entry + i * WORDS);
            const Several lower = several_at(entry + i * WORDS + 4);
            const Several upper = several_at(entry + i * WORDS + (WORDS - 1) * 4);
            constexpr unsigned BYTES = PIECE * sizeof(Real), ROW = TILE_P * sizeof(Real);
#pragma unroll
            for (unsigned e = 0; e < TOGETHER; e++) {
                const Mask bits = MASK == 64 ? Mask(upper.at[e]) << MASK / 2 | lower.at[e]
                                             : lower.at[e];
                copy_async<BYTES>(moved(samples, i + e) + (i + e) * ROW,
                                  corner + int(offsets.at[e]), !(mask & bits));
            }
        }
        weight += DEPTH * TILE_K;
        entry += DEPTH * WORDS;
    };

    Real sums[OUTS][VECTORS * VECTOR];
#pragma unroll
    for (unsigned i = 0; i < OUTS; i++)
#pragma unroll
        for (unsigned j = 0; j < VECTORS * VECTOR; j++) sums[i][j] = 0;
    unsigned stage = 0;
    fetch(0);
#pragma unroll 1
    for (; steps > 0; steps--) {
        wait_for_copies();
        __syncthreads();  // also: the stage that is filled next has been read by all
        if (steps > 1) fetch(STAGE - stage);
        const Real *const weights = memory + stage;
        multiply(sums, weights, weights + DEPTH * TILE_K, warp, lane);
        stage = STAGE - stage;
    }

    const bool whole = each == all_steps;  // else the sums alone are written, part by part
    y += size_t(part) * positions * groups * outputs;
    // Vectors of results lie in one plane where planes are whole vectors.
    const bool wide = pixels % VECTOR == 0 && reinterpret_cast<size_t>(y) % 16 == 0;
#pragma unroll
    for (unsigned i = 0; i < OUTS; i++) {
        const unsigned k = tile_k * TILE_K + warp / WARPS_P * 32 + out_of(lane, i);
        if (k >= outputs) break;
        const Real added = whole ? bias[group * outputs + k] : Real(0);
#pragma unroll
        for (unsigned v = 0; v < VECTORS; v++) {
            Vector results;
#pragma unroll
            for (unsigned e = 0; e < VECTOR; e++) {
                const Real value = sums[i][v * VECTOR + e] + added;
                results.at[e] = whole ? finish(value, slope, lowest, highest) : value;
            }
            const unsigned p = first_p + warp % WARPS_P * 64 + place_of(lane, v);
            if (wide && p < positions) {
                const size_t plane = p / pixels * groups + group;
                *reinterpret_cast<Vector *>(y + (plane * outputs + k) * pixels + p % pixels) =
                    results;
            }
            if (!wide)
#pragma unroll
                for (unsigned e = 0; e < VECTOR; e++)
                    if (p + e < positions) {
                        const size_t plane = (p + e) / pixels * groups + group;
                        y[(plane * outputs + k) * pixels + (p + e) % pixels] = results.at[e];
                    }
        }
    }
}
