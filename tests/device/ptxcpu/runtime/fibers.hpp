// CUDA's threads as fibers: one block after the other, a barrier is a switch to the scheduler.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "numbers.hpp"

#define API extern "C" __attribute__((visibility("default")))

#if !defined(__x86_64__)
#error "fibers are switched in x86-64 assembly"
#endif

enum State { RUNS, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Thread {
    u32 tid[3], index;
    void* stack_pointer;
    char* stack;
    State state;
    u32 mask;        // of the lanes that a warp's barrier waits for
    int site;        // instruction at which it waits
    u32 warp_epoch;  // how many barriers of its warp it has passed
};
struct Block {
    u32 ctaid[3], ntid[3], nctaid[3];
    u32 threads;
    u8* shared;
    u32 shared_bytes, dynamic_bytes;
    u32 epoch;  // how many barriers of the block have been passed, from 1
};

static std::vector<Thread> THREADS;
static Block BLOCK;
static u32 CURRENT;
static void* SCHEDULER;
static bool FAILED;
static char MESSAGE[512];
API const char* last_error() { return MESSAGE; }

static inline Thread& self() { return THREADS[CURRENT]; }

// Saves what a call must preserve, exchanges the stacks.
extern "C" void ptxcpu_switch(void** save, void* resume) __attribute__((visibility("hidden")));
asm(R"(.text
.hidden ptxcpu_switch
.globl ptxcpu_switch
ptxcpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

static void yield_to_scheduler() { ptxcpu_switch(&self().stack_pointer, SCHEDULER); }

[[noreturn]] static void fail(const char* what) {
    if (!FAILED)
        snprintf(MESSAGE, sizeof MESSAGE, "%s [block %u,%u,%u thread %u,%u,%u]", what, BLOCK.ctaid[0],
                 BLOCK.ctaid[1], BLOCK.ctaid[2], self().tid[0], self().tid[1], self().tid[2]);
    FAILED = true;
    self().state = DONE;
    yield_to_scheduler();
    abort();
}
static void block_barrier(int site) {
    self().state = AT_BLOCK_BARRIER;
    self().site = site;
    yield_to_scheduler();
}
static void warp_barrier(u32 mask) {
    if (!(mask >> (self().index & 31) & 1)) fail("a thread waits for a mask that it is not in");
    self().state = AT_WARP_BARRIER;
    self().mask = mask;
    yield_to_scheduler();
}

static u32 VOTES[1024];
// bar.red: how many threads of the block say so.
static u32 block_count(bool vote, int site) {
    VOTES[self().index] = vote;
    block_barrier(site);
    u32 count = 0;
    for (u32 i = 0; i < BLOCK.threads; i++) count += VOTES[i];
    block_barrier(site);
    return count;
}

typedef void (*KernelFunction)(const u8* parameters);
static KernelFunction KERNEL;
static const u8* PARAMETERS;
static void first_call() {
    KERNEL(PARAMETERS);
    self().state = DONE;
    yield_to_scheduler();
    abort();
}

const size_t STACK_BYTES = 128 << 10;

static void start(Thread& thread, u32 index) {
    thread.state = RUNS;
    thread.index = index;
    thread.warp_epoch = 0;
    thread.tid[0] = index % BLOCK.ntid[0];
    thread.tid[1] = index / BLOCK.ntid[0] % BLOCK.ntid[1];
    thread.tid[2] = index / (BLOCK.ntid[0] * BLOCK.ntid[1]);
    void** top = (void**)(thread.stack + STACK_BYTES - 64);
    *--top = nullptr;  // where first_call would return to, and what aligns the stack
    *--top = (void*)first_call;
    thread.stack_pointer = top - 6;  // six registers, whatever they hold
}

// Lets warps go on whose barrier is reached by all that it waits for; whether there was one.
static bool release_warps() {
    bool released = false;
    for (u32 first = 0; first < BLOCK.threads; first += 32) {
        u32 end = std::min(first + 32, BLOCK.threads), waiting = 0, wanted = 0, alive = 0;
        for (u32 i = first; i < end; i++) {
            u32 bit = 1u << (i - first);
            if (THREADS[i].state != DONE) alive |= bit;
            if (THREADS[i].state == AT_WARP_BARRIER) waiting |= bit, wanted |= THREADS[i].mask;
        }
        if (!waiting || (wanted & alive & ~waiting)) continue;
        for (u32 i = first; i < end; i++)
            if (THREADS[i].state == AT_WARP_BARRIER) THREADS[i].state = RUNS, THREADS[i].warp_epoch++;
        released = true;
    }
    return released;
}

// Lets the block go on if all its threads wait at one barrier; else MESSAGE says what is wrong.
static bool release_block() {
    u32 waiting = 0, done = 0;
    const Thread* one = nullptr;
    for (u32 i = 0; i < BLOCK.threads; i++) {
        Thread& t = THREADS[i];
        done += t.state == DONE;
        if (t.state != AT_BLOCK_BARRIER) continue;
        waiting++;
        if (one == nullptr) one = &t;
        if (t.site != one->site) {
            snprintf(MESSAGE, sizeof MESSAGE, "divergent barrier: threads %u and %u wait at different bar.sync",
                     one->index, t.index);
            return false;
        }
    }
    if (waiting != BLOCK.threads) {
        snprintf(MESSAGE, sizeof MESSAGE, "divergent barrier: %u of %u threads wait at bar.sync, %u have ended",
                 waiting, BLOCK.threads, done);
        return false;
    }
    for (u32 i = 0; i < BLOCK.threads; i++) THREADS[i].state = RUNS;
    BLOCK.epoch++;
    return true;
}

static bool run_block() {
    for (u32 i = 0; i < BLOCK.threads; i++) start(THREADS[i], i);
    for (;;) {
        u32 done = 0;
        for (u32 i = 0; i < BLOCK.threads; i++) {
            if (THREADS[i].state == RUNS) {
                CURRENT = i;
                ptxcpu_switch(&SCHEDULER, THREADS[i].stack_pointer);
                if (FAILED) return false;
            }
            done += THREADS[i].state == DONE;
        }
        if (done == BLOCK.threads) return true;
        if (!release_warps() && !release_block()) return false;
    }
}
