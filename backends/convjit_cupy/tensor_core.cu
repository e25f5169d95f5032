// Implicit GEMM on tensor cores: outputs of a channels-last convolution, tile by tile.
//
// A tile has ROWS positions by COLUMNS outputs; a warp sums 64 by 64 of it.  A step multiplies four
// chunks of 16 bytes (of one tap's channels) of every position by those of every output; steps
// ahead are on their way to shared memory while one is multiplied.  All three types of operands
// have the same fragments, of 16 bytes for a row and half a product: eight numbers of 16 bits, or
// four of TF32 (PTX ISA, "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8").
//
// A row of a tile is 64 bytes of shared memory.  Its chunk c lies at c ^ (row / 2 % 4), so that the
// same chunk of eight rows, which ldmatrix reads at once, covers all banks.
//
// Macros: ROWS, COLUMNS, STAGES; KIND of operands; WIDE, whether results are written by 16 bytes
// out of registers, or one by one in rows, which shared memory puts together;
// DIVIDED, whether a block has a part of the depth, whose sums alone it writes (split.py).

#define FLOAT16 0
#define BFLOAT16 1
#define TF32 2

#if KIND == TF32
typedef float Element;
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
#else
typedef unsigned short Element;
#if KIND == FLOAT16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
#endif

#if DIVIDED
typedef float Result;
#else
typedef Element Result;
#endif

typedef unsigned int u32;
typedef long long s64;

constexpr int EACH = 64;  // positions, and outputs, of a warp
constexpr int THREADS = ROWS / EACH * (COLUMNS / EACH) * 32;
constexpr int CHUNK = 16, CHUNKS = 4, LINE = CHUNK * CHUNKS;  // bytes
constexpr int NEIGHBOURS = 16 / sizeof(Result);  // results of a lane that lie together
constexpr int RUN = 4 * NEIGHBOURS, RUNS = EACH / RUN;  // of the four lanes that have a row
// Bytes of a row of results in shared memory: what lanes write at once lies in banks of their own.
constexpr int PITCH = EACH * sizeof(Result) + 64;
constexpr int STAGE = (ROWS + COLUMNS) * LINE;
constexpr int PARTS_P = ROWS * CHUNKS / THREADS, PARTS_K = COLUMNS * CHUNKS / THREADS;  // of a thread
constexpr int PART = 8 * LINE;

constexpr int ENTRY = MASK / 16;  // words
constexpr Mask EXISTS = (Mask)1 << (MASK - 1);
// Of a chunk: its offset in elements from a position's first sample, and the bits that the
// position's mask has to have; in memory their words, filled up to two or four.
struct Entry {
    u32 offset;
    Mask bits;
};
__device__ inline Entry entry_at(const u32* from) {
#if MASK == 64
    const uint4 words = __ldg((const uint4*)from);
    return {words.x, (Mask)words.z << 32 | words.y};
#else
    const uint2 words = __ldg((const uint2*)from);
    return {words.x, words.y};
#endif
}

__device__ inline float widened(Element a) {
#if KIND == TF32
    return a;
#elif KIND == FLOAT16
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(a));
    return wide;
#else
    return __uint_as_float((u32)a << 16);
#endif
}

__device__ inline Element narrowed(float a) {
#if KIND == TF32
    return a;
#else
    Element narrow;
#if KIND == FLOAT16
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(a));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(a));
#endif
    return narrow;
#endif
}

// Of two numbers; a NaN stays one.
__device__ inline float most(float a, float b) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
__device__ inline float least(float a, float b) {
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}

__device__ inline void load(u32 (&d)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from));
}
__device__ inline void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Of an axis: taps (as many bits; 0 where all are inside), samples, and how they are met.
struct Axis {
    int bits, size, out, stride, padding, dilation;
};
__device__ inline Mask inside(const Axis& axis, int first) {
    Mask mask = 0;
#pragma unroll 1
    for (int tap = 0; tap < axis.bits; tap++)
        if ((u32)(first + tap * axis.dilation) < (u32)axis.size) mask |= (Mask)1 << tap;
    return mask;
}

// biased: how many outputs of a group have a bias, all or none.
extern "C" __global__ void __launch_bounds__(THREADS, 256 / THREADS) tensor_core(
    const Element* __restrict__ x, const Element* __restrict__ w, const u32* __restrict__ table,
    const Element* __restrict__ bias, Result* __restrict__ y, int positions, int outputs, int groups,
    int channels, int all_steps, int each, int tiles_p, int tiles_k, int bits_z, int depth, int out_z, int stride_z,
    int padding_z, int dilation_z, int bits_y, int height, int out_y, int stride_y, int padding_y,
    int dilation_y, int bits_x, int width, int out_x, int stride_x, int padding_x, int dilation_x,
    float slope, float lowest, float highest, int biased) {
    extern __shared__ __align__(128) unsigned char stages[];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int tile_p = blockIdx.x % tiles_p;
    const int tile_k = blockIdx.x / tiles_p % tiles_k;
    const int group = blockIdx.x / tiles_p / tiles_k % groups;
#if DIVIDED
    const int part = blockIdx.x / tiles_p / tiles_k / groups, first_step = part * each;
    const int steps = min(each, all_steps - first_step);
    y += (s64)part * positions * groups * outputs;
#else
    const int first_step = 0, steps = all_steps;
#endif

    // What this thread copies of each step: one chunk, of positions and of outputs.  A warp copies
    // neighbouring rows, eight at once.
    const int chunk = thread % CHUNKS;
    const int row = warp * 8 * PARTS_P + lane / CHUNKS, row_k = warp * 8 * PARTS_K + lane / CHUNKS;
    const Element* corners[PARTS_P];
    Mask masks[PARTS_P];
    {
        const Axis z = {bits_z, depth, out_z, stride_z, padding_z, dilation_z};
        const Axis v = {bits_y, height, out_y, stride_y, padding_y, dilation_y};
        const Axis h = {bits_x, width, out_x, stride_x, padding_x, dilation_x};
#pragma unroll
        for (int i = 0; i < PARTS_P; i++) {
            int position = tile_p * ROWS + row + i * 8;
            masks[i] = 0;
            corners[i] = x;
            if (position >= positions) continue;
            const int x0 = position % h.out * h.stride - h.padding;
            position /= h.out;
            const int y0 = position % v.out * v.stride - v.padding;
            position /= v.out;
            const int z0 = position % z.out * z.stride - z.padding;
            position /= z.out;
            masks[i] = EXISTS | inside(z, z0) | inside(v, y0) << z.bits | inside(h, x0) << (z.bits + v.bits);
            corners[i] += ((((s64)position * z.size + z0) * v.size + y0) * h.size + x0) * (groups * channels)
                + group * channels;
        }
    }
    const u32 shared = shared_address(stages);
    const u32 into = shared + row * LINE + (chunk ^ row / 2 % 4) * CHUNK;
    const u32 into_k = into + (ROWS + row_k - row) * LINE;  // rows of both differ by eights
    // To the middle of the rows: the 12 bits of an offset reach them all.
    const char* weights = (const char*)w
        + (((s64)(group * tiles_k + tile_k) * all_steps + first_step) * COLUMNS + row_k) * LINE + chunk * CHUNK + PARTS_K / 2 * PART;
    const u32* entries = table + (first_step * CHUNKS + chunk) * ENTRY;
    Entry entry = entry_at(entries);
    // Copies the step so many after `weights` and `entries` into a stage, and reads the entry of the
    // next.  Beyond the last step it copies what nobody reads: zeros, and whatever follows the weights.
    auto copy_step = [&](int ahead, u32 stage) {
#pragma unroll
        for (int i = 0; i < PARTS_P; i++)
            copy_async<CHUNK>(
                into + stage + i * PART, corners[i] + (int)entry.offset, (entry.bits & ~masks[i]) == 0);
#pragma unroll
        for (int i = 0; i < PARTS_K; i++)
            copy_async<CHUNK>(
                into_k + stage + i * PART,
                weights + ahead * COLUMNS * LINE + (i - PARTS_K / 2) * PART);
        entry = entry_at(entries + (ahead + 1) * CHUNKS * ENTRY);
    };
    auto advance = [&](int by) {
        weights += by * COLUMNS * LINE;
        entries += by * CHUNKS * ENTRY;
    };

    float sums[EACH / 16][EACH / 8][4] = {};
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ahead++) {
        copy_step(ahead, ahead * STAGE);
        commit_copies();
    }
    advance(STAGES - 1);
    // Rows that this lane names to ldmatrix: of A the halves of 16 positions, chunk by chunk, of B
    // both chunks of 8 outputs, and of the 8 beside.
    const int warp_p = warp % (ROWS / EACH) * EACH, warp_k = warp / (ROWS / EACH) * EACH;
    const int in_matrix = lane % 8, matrix = lane / 8;
    const u32 swizzle = in_matrix / 2;
    const u32 from_a = shared + (warp_p + matrix % 2 * 8 + in_matrix) * LINE + (matrix / 2 ^ swizzle) * CHUNK;
    const u32 from_b = shared + (warp_k + matrix / 2 * 8 + in_matrix) * LINE + (matrix % 2 ^ swizzle) * CHUNK;
    const u32 from[2][2] = {{from_a, from_b}, {from_a ^ 2 * CHUNK, from_b ^ 2 * CHUNK}};
    // Unrolled, so that a stage's place is a constant; further where wide masks take twice the
    // instructions, that half of all are products nevertheless.
    constexpr int UNROLLED = MASK == 64 ? 3 * STAGES : STAGES;
    for (int left = steps; left > 0; left -= UNROLLED, advance(UNROLLED)) {
#pragma unroll
        for (int step = 0; step < UNROLLED; step++) {
            const int stage = step % STAGES;
            wait_for_all_but<STAGES - 2>();
            __syncthreads();  // all copies of this step are there, and all have read the one before
            copy_step(step, (stage + STAGES - 1) % STAGES * STAGE);
            commit_copies();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 a[EACH / 16][4], b[EACH / 16][4];
#pragma unroll
                for (int i = 0; i < EACH / 16; i++) load(a[i], from[half][0] + stage * STAGE + i * 16 * LINE);
#pragma unroll
                for (int j = 0; j < EACH / 16; j++)
                    load(b[j], from[half][1] + stage * STAGE + (ROWS + j * 16) * LINE);
#pragma unroll
                for (int i = 0; i < EACH / 16; i++)
#pragma unroll
                    for (int j = 0; j < EACH / 8; j++)
                        multiply(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
            if (left == step + 1) break;
        }
    }

    wait_for_copies();  // a block may not end before its copies

    // Columns are packed in an order that gives a lane NEIGHBOURS of NEIGHBOURS / 2 products.
    const int first = tile_p * ROWS + warp_p, first_k = tile_k * COLUMNS + warp_k;
    const int own = lane % 4 * NEIGHBOURS;
    float added[RUNS][NEIGHBOURS];
#pragma unroll
    for (int r = 0; r < RUNS; r++)
#pragma unroll
        for (int e = 0; e < NEIGHBOURS; e++) {
            const int k = first_k + r * RUN + own + e;
            added[r][e] = k < biased ? widened(bias[group * outputs + k]) : 0.f;
        }
    Result* to = y + ((s64)first * groups + group) * outputs + first_k;
    const s64 below = (s64)groups * outputs;
#if !WIDE
    __syncthreads();  // all have read the stages, which are lines of results now
    unsigned char* const lines = stages + warp * 8 * PITCH;
#endif
#pragma unroll
    for (int i = 0; i < EACH / 8; i++, to += 8 * below) {
#pragma unroll
        for (int r = 0; r < RUNS; r++) {
            alignas(16) Result results[NEIGHBOURS];
#pragma unroll
            for (int e = 0; e < NEIGHBOURS; e++) {
                const float sum = sums[i / 2][r * NEIGHBOURS / 2 + e / 2][i % 2 * 2 + e % 2];
#if DIVIDED
                results[e] = sum;
#else
                const float value = sum + added[r][e];
                results[e] = narrowed(least(most(value < 0 ? value * slope : value, lowest), highest));
#endif
            }
            const int k = r * RUN + own;
#if WIDE
            if (first + i * 8 + lane / 4 < positions && first_k + k < outputs)
                *(uint4*)(to + lane / 4 * below + k) = *(const uint4*)results;
#else
            *(uint4*)(lines + lane / 4 * PITCH + k * sizeof(Result)) = *(const uint4*)results;
#endif
        }
#if !WIDE
        __syncwarp();
#pragma unroll
        for (int row = 0; row < 8; row++)
#pragma unroll
            for (int k = lane; k < EACH; k += 32)
                if (first + i * 8 + row < positions && first_k + k < outputs)
                    to[row * below + k] = ((const Result*)(lines + row * PITCH))[k];
        __syncwarp();
#endif
    }
}
