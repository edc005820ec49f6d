// Runs one emulated op from a file: every tensor becomes an allocation of exactly its size, so that the sanitizers see
// whoever leaves it. The format is that of `in_sanitizers` in emulated.py.
#include <dlfcn.h>

#include <cstdio>
#include <string>

#include "emulated_host.h"

extern "C" const char* emulated_error();

namespace {

std::FILE* file = nullptr;

void read_bytes(void* to, size_t bytes) {
    if (bytes != 0 && std::fread(to, 1, bytes, file) != bytes) {
        std::fprintf(stderr, "the case ends early\n");
        std::exit(2);
    }
}

int64_t read_int() {
    int64_t value = 0;
    read_bytes(&value, sizeof(value));
    return value;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3 || (file = std::fopen(argv[1], "rb")) == nullptr) return 2;
    char name[33] = {};
    read_bytes(name, 32);
    emulation::Options options{};
    read_bytes(&options, sizeof(options));
    std::vector<int64_t> ints(static_cast<size_t>(read_int()));
    read_bytes(ints.data(), ints.size() * sizeof(int64_t));
    double real = 0;
    read_bytes(&real, sizeof(real));
    const bool is_double = read_int() != 0;
    const size_t inputs = static_cast<size_t>(read_int()), results = static_cast<size_t>(read_int());
    std::vector<void*> buffers;
    std::vector<size_t> sizes;
    for (size_t i = 0; i < inputs + results; ++i) {
        const int64_t size = read_int();
        buffers.push_back(size < 0 ? nullptr : std::malloc(static_cast<size_t>(size)));
        sizes.push_back(size < 0 ? 0 : static_cast<size_t>(size));
        read_bytes(buffers.back(), sizes.back());
    }
    std::fclose(file);

    using Op = int (*)(const emulation::Call*, int);
    const auto op = reinterpret_cast<Op>(dlsym(RTLD_DEFAULT, (std::string("emulated_") + name).c_str()));
    const emulation::Call call{&options, ints.data(), real, buffers.data()};
    if (op == nullptr || op(&call, is_double ? 1 : 0) != 0) {
        std::fprintf(stderr, "%s\n", op == nullptr ? "no such op" : emulated_error());
        return 3;
    }
    file = std::fopen(argv[2], "wb");
    if (file == nullptr) return 2;
    for (size_t i = inputs; i < inputs + results; ++i) std::fwrite(buffers[i], 1, sizes[i], file);
    return std::fclose(file) == 0 ? 0 : 2;
}
