// Where an address points, and in checked mode whether a thread may go there now.
//
// An address of shared memory is an offset into the block's; all others are the host's own.  In
// checked mode every access is held to its alignment and to the arrays that the launch was given;
// every byte of shared memory remembers who touched it since the last barrier; and the accesses of
// a warp are collected, to count what the memory would make of them.
#pragma once
#include "fibers.hpp"

struct Range {
    u64 begin, end;
};
static inline u64 generic_of_shared(u64 offset) { return (u64)BLOCK.shared + offset; }
static inline u64 shared_of_generic(u64 address) { return address - (u64)BLOCK.shared; }
static inline bool is_shared(u64 address) { return address - (u64)BLOCK.shared < BLOCK.shared_bytes; }

#ifdef CHECKED

// What one instruction did: accesses of threads, requests of warps, the least transactions that
// these could have been, and those that they were.
struct Counts {
    u64 accesses, requests, ideal, actual;
};
static std::vector<Counts> COUNTS;  // of each site

struct Access {
    u64 request, address;  // of a request: site, warp, and how often the thread came to the site
    u16 bytes;
    u8 lane;
    bool shared;
};
static std::vector<Access> ACCESSES;  // of the block
static std::vector<u32> TURNS;        // how often each thread came to each site

static void record(u64 address, u32 bytes, bool shared, int site) {
    u32 me = self().index, turn = TURNS[(size_t)site * BLOCK.threads + me]++;
    u64 request = (u64)site << 37 | (u64)(me / 32) << 32 | turn;
    ACCESSES.push_back({request, address, (u16)bytes, (u8)(me & 31), shared});
}
// A thread came to a site and did not go there: its next access is of a later request.
static void pass(int site) { TURNS[(size_t)site * BLOCK.threads + self().index]++; }

// Shared memory has 32 banks of 4 bytes; a warp's wider accesses go by halves and quarters.
static void count_banks(Counts& counts, const Access* begin, const Access* end) {
    u32 together = begin->bytes <= 4 ? 32 : begin->bytes == 8 ? 16 : 8;
    for (u32 first = 0; first < 32; first += together) {
        u64 words[32][32], most = 0;  // that a bank is asked for, each once
        u32 asked[32] = {};
        for (const Access* a = begin; a < end; a++)
            if (a->lane >= first && a->lane < first + together)
                for (u64 word = a->address / 4; word <= (a->address + a->bytes - 1) / 4; word++) {
                    u32 bank = word % 32;
                    u64* last = words[bank] + asked[bank];
                    if (std::find(words[bank], last, word) == last) *last = word, asked[bank]++;
                }
        for (u32 count : asked) most = std::max<u64>(most, count);
        counts.ideal += most > 0;
        counts.actual += most;
    }
}

// Other memory moves in sectors of 32 bytes; the accesses are in the order of their addresses.
static void count_sectors(Counts& counts, const Access* begin, const Access* end) {
    u64 bytes = 0, byte = 0, sector = 0;  // how many, and the first that no access has reached yet
    for (const Access* a = begin; a < end; a++) {
        u64 behind = a->address + a->bytes, behind_sector = (behind + 31) / 32;
        if (behind > byte) bytes += behind - std::max(byte, a->address), byte = behind;
        if (behind_sector <= sector) continue;
        counts.actual += behind_sector - std::max(sector, a->address / 32);
        sector = behind_sector;
    }
    counts.ideal += (bytes + 31) / 32;
}

static void count_requests() {
    std::sort(ACCESSES.begin(), ACCESSES.end(), [](const Access& a, const Access& b) {
        return a.request != b.request ? a.request < b.request : a.address < b.address;
    });
    const Access *end = ACCESSES.data() + ACCESSES.size(), *next;
    for (const Access* begin = ACCESSES.data(); begin < end; begin = next) {
        for (next = begin + 1; next < end && next->request == begin->request;) next++;
        Counts& counts = COUNTS[begin->request >> 37];
        counts.accesses += next - begin;
        counts.requests++;
        (begin->shared ? count_banks : count_sectors)(counts, begin, next);
    }
    ACCESSES.clear();
}

// A byte of shared memory: its last writer, and its readers since then, each with the barriers
// that they had passed.  Readers are kept as one, and whether there were several.
struct Touched {
    u32 writer, write_epoch, write_warp_epoch;
    u32 reader, read_epoch, read_warp_epoch;
    bool several_threads, several_warps;
};
static std::vector<Touched> TOUCHED;
static std::vector<Range> RANGES;
API void set_ranges(const u64* bounds, int count) {
    RANGES.clear();
    for (int i = 0; i < count; i++) RANGES.push_back({bounds[2 * i], bounds[2 * i + 1]});
}

static bool in_order(u32 other, u32 epoch, u32 warp_epoch, bool several_threads = false, bool several_warps = false) {
    Thread& me = self();
    if (epoch != BLOCK.epoch) return true;  // a barrier of the block lies between
    if (other == me.index && !several_threads) return true;
    return other / 32 == me.index / 32 && !several_warps && warp_epoch != me.warp_epoch;
}
[[noreturn]] static void fail_race(const char* doing, u64 byte, const char* after, u32 other) {
    char text[160];
    snprintf(text, sizeof text, "shared memory race: %s of byte %lu after a %s by thread %u with no barrier between",
             doing, (unsigned long)byte, after, other);
    fail(text);
}
static void check_shared(u64 offset, u32 bytes, bool writes) {
    if (offset + bytes > BLOCK.shared_bytes) fail("shared memory access out of bounds");
    if (offset % bytes) fail("misaligned access of shared memory");
    Thread& me = self();
    for (u64 at = offset; at < offset + bytes; at++) {
        Touched& t = TOUCHED[at];
        bool behind_writer = in_order(t.writer, t.write_epoch, t.write_warp_epoch);
        if (writes) {
            if (!behind_writer) fail_race("write", at, "write", t.writer);
            if (!in_order(t.reader, t.read_epoch, t.read_warp_epoch, t.several_threads, t.several_warps))
                fail_race("write", at, "read", t.reader);
            t.writer = me.index, t.write_epoch = BLOCK.epoch, t.write_warp_epoch = me.warp_epoch;
        } else {
            if (!t.write_epoch) fail("read of uninitialised shared memory");
            if (!behind_writer) fail_race("read", at, "write", t.writer);
            bool first = t.read_epoch != BLOCK.epoch;
            t.several_threads = !first && (t.several_threads || t.reader != me.index);
            t.several_warps = !first && (t.several_warps || t.reader / 32 != me.index / 32);
            t.reader = me.index, t.read_epoch = BLOCK.epoch, t.read_warp_epoch = me.warp_epoch;
        }
    }
}
static void check_global(u64 address, u32 bytes, bool writes) {
    bool inside = false;
    for (auto& range : RANGES) inside |= address >= range.begin && address + bytes <= range.end;
    if (!inside) fail(writes ? "global store out of bounds" : "global load out of bounds");
    if (address % bytes) fail("misaligned access of global memory");
}
static u8* shared_at(u64 offset, u32 bytes, bool writes, int site) {
    check_shared(offset, bytes, writes);
    record(offset, bytes, true, site);
    return BLOCK.shared + offset;
}
static u8* global_at(u64 address, u32 bytes, bool writes, int site) {
    check_global(address, bytes, writes);
    record(address, bytes, false, site);
    return (u8*)address;
}
static u8* local_at(u64 address, u32 bytes, const Range* arrays, int count) {
    bool inside = false;
    for (int i = 0; i < count; i++) inside |= address >= arrays[i].begin && address + bytes <= arrays[i].end;
    if (!inside) fail("local memory access out of bounds");
    if (address % bytes) fail("misaligned access of local memory");
    return (u8*)address;
}

#else  // unchecked

static inline void pass(int) {}
static inline u8* shared_at(u64 offset, u32, bool, int) { return BLOCK.shared + offset; }
static inline u8* global_at(u64 address, u32, bool, int) { return (u8*)address; }
static inline u8* local_at(u64 address, u32, const Range*, int) { return (u8*)address; }

#endif

static inline u8* generic_at(u64 address, u32 bytes, bool writes, int site, const Range* arrays, int count) {
    if (is_shared(address)) return shared_at(shared_of_generic(address), bytes, writes, site);
    for (int i = 0; i < count; i++)
        if (address >= arrays[i].begin && address < arrays[i].end) return local_at(address, bytes, arrays, count);
    return global_at(address, bytes, writes, site);
}

// Atomic, since blocks and threads run one after the other: f(old, operand) replaces old.
// In checked mode the place is checked, but atomics are ordered among themselves.
template <class T, class F>
static inline T atomic(u8* place, F f) {
    T old = load<T>(place), next = f(old);
    memcpy(place, &next, sizeof next);
    return old;
}

// cp.async: the bytes arrive when their group is waited for, so that a kernel which does not wait
// reads what was there before.
struct Copy {
    u64 to, from;
    u32 bytes, given;  // what is not given is zero
    int site;
    u32 group;
};
static std::vector<std::vector<Copy>> COPIES(1024);
static std::vector<u32> GROUPS(1024);
static void async_copy(u64 to, u64 from, u32 bytes, u32 given, int site) {
    COPIES[self().index].push_back({to, from, bytes, std::min(bytes, given), site, GROUPS[self().index]});
}
static void async_commit() { GROUPS[self().index]++; }
static void async_wait(u32 pending, bool all) {
    auto& copies = COPIES[self().index];
    u32 group = GROUPS[self().index];
    auto arrives = [&](const Copy& c) { return all || (s64)c.group < (s64)group - (s64)pending; };
    for (auto& c : copies)
        if (arrives(c)) {
            u8* to = shared_at(c.to, c.bytes, true, c.site);
            memset(to, 0, c.bytes);
            if (c.given) memcpy(to, global_at(c.from, c.given, false, c.site), c.given);
            else pass(c.site);
        }
    std::erase_if(copies, arrives);
}

// ---------------------------------------------------------------------- launching

static int launch(KernelFunction kernel, int sites, const u32* grid, const u32* block, const u8* parameters,
                  u32 shared_bytes, u32 dynamic_bytes) {
    KERNEL = kernel, PARAMETERS = parameters, FAILED = false, MESSAGE[0] = 0;
    BLOCK.threads = block[0] * block[1] * block[2];
    if (BLOCK.threads > 1024) {
        snprintf(MESSAGE, sizeof MESSAGE, "a block has at most 1024 threads, not %u", BLOCK.threads);
        return 1;
    }
    while (THREADS.size() < BLOCK.threads) {
        Thread thread{};
        thread.stack = (char*)aligned_alloc(64, STACK_BYTES);
        THREADS.push_back(thread);
    }
    static std::vector<u8> space;
    space.resize(shared_bytes + 256);
    BLOCK.shared = (u8*)(((u64)space.data() + 127) / 128 * 128);
    BLOCK.shared_bytes = shared_bytes, BLOCK.dynamic_bytes = dynamic_bytes;
    memcpy(BLOCK.ntid, block, 12);
    memcpy(BLOCK.nctaid, grid, 12);
#ifdef CHECKED
    COUNTS.resize(sites);
    ACCESSES.clear();
#endif
    for (BLOCK.ctaid[2] = 0; BLOCK.ctaid[2] < grid[2]; BLOCK.ctaid[2]++)
        for (BLOCK.ctaid[1] = 0; BLOCK.ctaid[1] < grid[1]; BLOCK.ctaid[1]++)
            for (BLOCK.ctaid[0] = 0; BLOCK.ctaid[0] < grid[0]; BLOCK.ctaid[0]++) {
                memset(BLOCK.shared, 0xA5, shared_bytes);
                BLOCK.epoch = 1;
                for (auto& copies : COPIES) copies.clear();
#ifdef CHECKED
                TOUCHED.assign(shared_bytes, Touched{});
                TURNS.assign((size_t)sites * BLOCK.threads, 0);
#endif
                if (!run_block()) return 1;
#ifdef CHECKED
                count_requests();
#endif
            }
    return 0;
}
#ifdef CHECKED
API void take_counts(Counts* to) {
    std::copy(COUNTS.begin(), COUNTS.end(), to);
    std::fill(COUNTS.begin(), COUNTS.end(), Counts{});
}
#endif
