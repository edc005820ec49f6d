// The scheduler behind cuda_emulation.h.
#include "cuda_emulation.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

thread_local unsigned char dynamic_shared[kDynamicCapacity];

// Switching fibres: glibc's swapcontext enters the kernel twice for the signal mask, which would be most of the time.
#if defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_OWN_SWITCH 1
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.hidden emulation_switch
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
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
.size emulation_switch, .-emulation_switch
)");
#else
#include <ucontext.h>
#endif

namespace emulation {

constexpr size_t kStackBytes = 128 * 1024;

struct Fibre {
    char* stack = nullptr;  // null: the one that launched
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;  // ASan's
#if defined(EMULATION_OWN_SWITCH)
    void* top = nullptr;
#else
    ucontext_t context;
#endif
};

dim3 block_size;
struct Block;

struct Thread : Fibre {
    dim3 index;
    int number = 0;      // within the block
    size_t slot = 0;     // among all
    Block* block = nullptr;
};

struct Warp {
    std::vector<int> ready;  // numbers of threads within the block
    unsigned arrived = 0;
    unsigned mask = 0;
    WarpOp op = WarpOp::kSync;
    int line = 0;
    int half = 0;  // lanes of the next operation must not overwrite what slower lanes still read
    uint64_t value[2][32];
    unsigned votes[2] = {0, 0};
};

struct Block {
    dim3 index;
    int first_thread = 0;
    int alive = 0;
    int at_barrier = 0;
    int at_grid_barrier = 0;
    int barrier_line = 0;
    std::vector<Warp> warps;
    int num_ready = 0;
    int favourite = -1;  // the warp whose turn it is; -1: to be chosen
    std::vector<unsigned char> shared;  // while another block runs

    void make_ready(int number) {
        warps[number / 32].ready.push_back(number);
        num_ready += 1;
    }
    void make_all_ready() {
        const int size = static_cast<int>(block_size.x * block_size.y * block_size.z);
        for (int number = size - 1; number >= 0; --number) make_ready(number);
        favourite = -1;
    }
};

Thread* current = nullptr;
dim3 grid_size;

namespace {

Fibre launcher;
std::vector<std::unique_ptr<Thread>> threads;  // of all blocks that run side by side
std::vector<Block> blocks;
Block* in_place = nullptr;  // whose shared memory is in place
std::string failure;
Entry entry = nullptr;
void* closure = nullptr;
uint64_t random_state = 0;  // 0: in order
bool takes_turns = false;   // a warp goes on until all of it waits; else any warp may be next at any time
size_t dynamic_limit = 0;
bool cooperative_launch = false;

uint64_t draw(uint64_t below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (random_state >> 11) % below;
}

struct SharedMemory {
    unsigned char* data = nullptr;
    size_t bytes = 0;
};

// The thread-local block of this library: it holds `__shared__` variables and nothing else.
SharedMemory shared_memory() {
    static SharedMemory found;
    if (found.data != nullptr) return found;
    volatile unsigned char* touch = dynamic_shared;  // makes the loader allocate the block
    *touch = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
            const auto here = reinterpret_cast<uintptr_t>(&launcher);
            bool is_this = false;
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                const auto& part = info->dlpi_phdr[i];
                const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
                if (part.p_type == PT_LOAD && here >= begin && here < begin + part.p_memsz) is_this = true;
            }
            for (int i = 0; is_this && i < info->dlpi_phnum; ++i) {
                if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
                auto* result = static_cast<SharedMemory*>(out);
                result->data = static_cast<unsigned char*>(info->dlpi_tls_data);
                result->bytes = info->dlpi_phdr[i].p_memsz;
            }
            return is_this ? 1 : 0;
        },
        &found);
    if (found.data == nullptr) throw Error("the thread-local memory of the emulation was not found");
    return found;
}

void limit_dynamic(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(dynamic_shared, kDynamicCapacity);
    __asan_poison_memory_region(dynamic_shared + bytes, kDynamicCapacity - bytes);
#else
    (void)bytes;
#endif
}

void arrive(Fibre* fibre, const void** left_stack, size_t* left_bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fibre == nullptr ? nullptr : fibre->fake_stack, left_stack, left_bytes);
#else
    (void)fibre, (void)left_stack, (void)left_bytes;
#endif
}

void switch_to(Fibre* from, Fibre* to, bool is_last = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(is_last ? nullptr : &from->fake_stack, to->stack, to->stack_bytes);
#else
    (void)is_last;
#endif
#if defined(EMULATION_OWN_SWITCH)
    emulation_switch(&from->top, to->top);
#else
    swapcontext(&from->context, &to->context);
#endif
    arrive(from, nullptr, nullptr);
}

void give_up(const std::string& why) {
    failure = why;
    Thread* from = current;
    current = nullptr;
    switch_to(from, &launcher);
}

std::string place(const Block& block) {
    return "block (" + std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + "), " +
           std::to_string(block_size.x * block_size.y * block_size.z) + " threads: ";
}

std::string deadlock() {
    for (const Block& block : blocks) {
        if (block.alive == 0) continue;
        std::string text = "deadlock in " + place(block) + std::to_string(block.at_barrier) + " wait at the barrier";
        if (block.at_barrier > 0) text += " of line " + std::to_string(block.barrier_line);
        text += ", " + std::to_string(block.at_grid_barrier) + " at the grid's";
        for (const Warp& warp : block.warps) {
            if (warp.arrived == 0) continue;
            text += ", " + std::to_string(__builtin_popcount(warp.arrived)) + " of a warp in line " +
                    std::to_string(warp.line);
        }
        const int total = static_cast<int>(block_size.x * block_size.y * block_size.z);
        return text + ", " + std::to_string(total - block.alive) + " have ended";
    }
    return "deadlock";
}

void put_in_place(Block* block) {
    if (in_place == block) return;
    limit_dynamic(kDynamicCapacity);  // this is not the kernel's access
    const SharedMemory memory = shared_memory();
    if (in_place != nullptr) in_place->shared.assign(memory.data, memory.data + memory.bytes);
    if (block->shared.empty()) {
        std::memset(memory.data, 0xa5, memory.bytes);
    } else {
        std::memcpy(memory.data, block->shared.data(), memory.bytes);
    }
    in_place = block;
    limit_dynamic(dynamic_limit);
}

// A block with a thread that can go on: the present one while it has one, so that blocks change places seldom.
Block* next_block() {
    if (in_place != nullptr && in_place->num_ready > 0) return in_place;
    std::vector<Block*> able;
    for (Block& block : blocks) {
        if (block.num_ready > 0) able.push_back(&block);
    }
    if (able.empty()) return nullptr;
    return able[random_state != 0 ? draw(able.size()) : 0];
}

Thread* next_thread() {
    Block* block = next_block();
    if (block == nullptr) return nullptr;
    put_in_place(block);
    const int num_warps = static_cast<int>(block->warps.size());
    const bool must_choose = block->favourite < 0 || block->warps[block->favourite].ready.empty();
    if (must_choose || (random_state != 0 && !takes_turns)) {
        block->favourite = random_state != 0 ? static_cast<int>(draw(num_warps)) : 0;
    }
    while (block->warps[block->favourite].ready.empty()) block->favourite = (block->favourite + 1) % num_warps;
    std::vector<int>& ready = block->warps[block->favourite].ready;
    if (random_state != 0) std::swap(ready[draw(ready.size())], ready.back());
    const int number = ready.back();
    ready.pop_back();
    block->num_ready -= 1;
    return threads[block->first_thread + number].get();
}

// Leave the present thread, which somebody else has to make ready again.
void park(bool is_last = false) {
    Thread* from = current;
    Thread* to = next_thread();
    if (to == from) return;
    if (to == nullptr) {
        for (const Block& block : blocks) {
            if (block.alive != 0) return give_up(deadlock());
        }
        current = nullptr;
        switch_to(from, &launcher, is_last);
        return;
    }
    current = to;
    switch_to(from, to, is_last);
}

void body() {
    const void* stack = nullptr;
    size_t bytes = 0;
    arrive(nullptr, &stack, &bytes);
    if (launcher.stack == nullptr) {  // ASan names the launcher's stack when the first fibre starts
        launcher.stack = static_cast<char*>(const_cast<void*>(stack));
        launcher.stack_bytes = bytes;
    }
    entry(closure);
    current->block->alive -= 1;
    park(true);
    std::abort();  // an ended thread never goes on
}

void prepare(Thread& thread) {
    if (thread.stack == nullptr) {
        void* memory = mmap(
            nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw Error("no memory for the stack of a thread");
        thread.stack = static_cast<char*>(memory);
        thread.stack_bytes = kStackBytes;
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(thread.stack, thread.stack_bytes);
#endif
    thread.fake_stack = nullptr;
#if defined(EMULATION_OWN_SWITCH)
    // Stacks that begin at equal distances would share a few sets of the cache: each begins a little lower.
    const size_t lower = thread.slot % 61 * 320;
    void** top = reinterpret_cast<void**>(thread.stack + kStackBytes - lower) - 2;
    *top = reinterpret_cast<void*>(&body);  // where the switch returns to; the stack is then aligned for a function
    thread.top = top - 6;
    std::memset(thread.top, 0, 6 * sizeof(void*));
#else
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack;
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, body, 0);
#endif
}

void run_together(const std::vector<dim3>& indices) {
    const int size = static_cast<int>(block_size.x * block_size.y * block_size.z);
    while (threads.size() < indices.size() * size) {
        threads.push_back(std::make_unique<Thread>());
        threads.back()->slot = threads.size();
    }
    blocks.assign(indices.size(), Block{});
    for (size_t b = 0; b < indices.size(); ++b) {
        Block& block = blocks[b];
        block.index = indices[b];
        block.first_thread = static_cast<int>(b) * size;
        block.alive = size;
        block.warps.resize((size + 31) / 32);
        block.make_all_ready();
        for (int number = 0; number < size; ++number) {
            Thread& thread = *threads[block.first_thread + number];
            const unsigned n = static_cast<unsigned>(number);
            thread.index = dim3(n % block_size.x, n / block_size.x % block_size.y, n / (block_size.x * block_size.y));
            thread.number = number;
            thread.block = &block;
            prepare(thread);
        }
    }
    in_place = nullptr;
    failure.clear();
    current = next_thread();
    switch_to(&launcher, current);
    if (!failure.empty()) throw Error(failure);
}

}  // namespace

const dim3& thread_index() { return current->index; }
const dim3& block_index() { return current->block->index; }
int lane() { return current->number % 32; }

const uint64_t* exchange(WarpOp op, unsigned mask, uint64_t value, int line) {
    Thread* me = current;
    Block& block = *me->block;
    Warp& warp = block.warps[me->number / 32];
    const unsigned bit = 1u << (me->number % 32);
    if (warp.arrived == 0) {
        warp.op = op;
        warp.mask = mask;
        warp.line = line;
        warp.votes[warp.half] = 0;
    }
    if ((mask & bit) == 0) give_up(place(block) + "a lane is not in the mask it passes, line " + std::to_string(line));
    if (warp.op != op || warp.mask != mask || warp.line != line) {
        give_up(
            place(block) + "lanes of a warp meet in different operations, lines " + std::to_string(warp.line) +
            " and " + std::to_string(line));
    }
    const int half = warp.half;
    warp.value[half][me->number % 32] = value;
    if (value != 0) warp.votes[half] |= bit;
    warp.arrived |= bit;
    if (warp.arrived != mask) {
        park();
        return warp.value[half];
    }
    warp.arrived = 0;
    warp.half = 1 - half;
    const int base = me->number / 32 * 32;
    for (int l = 31; l >= 0; --l) {
        if ((mask >> l & 1) != 0 && base + l != me->number) block.make_ready(base + l);
    }
    return warp.value[half];
}

unsigned vote(unsigned mask, bool mine, int line) {
    Warp& warp = current->block->warps[current->number / 32];
    const int half = warp.half;
    exchange(WarpOp::kBallot, mask, mine ? 1 : 0, line);
    return warp.votes[half];
}

void block_barrier(int line) {
    Block& block = *current->block;
    if (block.at_barrier == 0) block.barrier_line = line;
    if (block.barrier_line != line) {
        give_up(
            place(block) + "threads wait at different barriers, lines " + std::to_string(block.barrier_line) +
            " and " + std::to_string(line));
    }
    block.at_barrier += 1;
    const int size = static_cast<int>(block_size.x * block_size.y * block_size.z);
    if (block.at_barrier == size) {
        block.at_barrier = 0;
        block.make_all_ready();
    }
    park();
}

void grid_barrier() {
    if (!cooperative_launch) give_up("a grid barrier needs a cooperative launch");
    const int size = static_cast<int>(block_size.x * block_size.y * block_size.z);
    current->block->at_grid_barrier += 1;
    for (const Block& block : blocks) {
        if (block.at_grid_barrier != size) return park();
    }
    for (Block& block : blocks) {
        block.at_grid_barrier = 0;
        block.make_all_ready();
    }
    park();
}

void let_others_run() {
    if (random_state == 0) return;
    current->block->make_ready(current->number);
    park();
}

void run(
    const Options& options, dim3 grid, dim3 block, size_t dynamic_bytes, bool cooperative, Entry entry_, void* closure_) {
    const int64_t size = int64_t{block.x} * block.y * block.z, total = int64_t{grid.x} * grid.y * grid.z;
    if (size < 1 || size > 1024 || total < 1) throw Error("a launch needs 1 to 1024 threads and at least one block");
    if (grid.y > 65535 || grid.z > 65535) throw Error("a grid has at most 65535 blocks along y and z");
    if (cooperative && total > options.resident_blocks) throw Error("a cooperative launch is larger than the device");
    if (dynamic_bytes > kDynamicCapacity) throw Error("too much dynamic shared memory");
    if (current != nullptr) throw Error("one launch at a time");
    entry = entry_;
    closure = closure_;
    block_size = block;
    grid_size = grid;
    cooperative_launch = cooperative;
    random_state = options.seed == 0 ? 0 : 0x9e3779b97f4a7c15u * static_cast<uint64_t>(options.seed);
    takes_turns = options.seed % 2 != 0;
    dynamic_limit = dynamic_bytes;
    std::vector<dim3> indices;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) indices.emplace_back(x, y, z);
        }
    }
    for (size_t i = indices.size() - 1; random_state != 0 && i > 0; --i) std::swap(indices[i], indices[draw(i + 1)]);
    if (cooperative) {
        run_together(indices);
    } else {
        for (const dim3& index : indices) run_together({index});
    }
}

}  // namespace emulation
