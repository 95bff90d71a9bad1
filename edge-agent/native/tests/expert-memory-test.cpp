#include "expert-memory.h"

#include "check.h"

#include <cstring>
#include <sys/mman.h>

// Experts of an odd size share pages; those of neighbours must survive a release.
static void spares_pages_of_present_neighbours(uint64_t bytes, int experts) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t length = (bytes * uint64_t(experts) + page - 1) / page * page;
    char * base = static_cast<char *>(mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::vector<uint8_t> present(size_t(experts), 1);
    const auto fill = [&](int e) { memset(base + uint64_t(e) * bytes, 1 + e % 100, bytes); };
    const auto whole = [&](int e) {
        for (uint64_t i = 0; i < bytes; i++) {
            if (base[uint64_t(e) * bytes + i] != char(1 + e % 100)) return false;
        }
        return true;
    };
    for (int e = 0; e < experts; e++) fill(e);
    uint64_t state = 12345;
    for (int round = 0; round < 300; round++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        const int e = int((state >> 33) % uint64_t(experts));
        if (present[size_t(e)]) {
            present[size_t(e)] = 0;
            expert_pages_release(base, bytes, experts, present.data(), e, page);
        } else {
            fill(e);
            present[size_t(e)] = 1;
        }
        for (int other = 0; other < experts; other++) {
            if (present[size_t(other)]) CHECK(whole(other));
        }
    }
    for (int e = 0; e < experts; e++) {
        present[size_t(e)] = 0;
        expert_pages_release(base, bytes, experts, present.data(), e, page);
    }
    // Nothing present: every page was given back.
    std::vector<unsigned char> resident(length / page);
    CHECK_EQUAL(mincore(base, length, resident.data()), 0);
    for (size_t p = 0; p < resident.size(); p++) CHECK_EQUAL(resident[p] & 1, 0);
    munmap(base, length);
}

static void places_matrices_and_counts_bytes() {
    std::string version;
    REQUIRE_OK(engine_version(version));
    model_file file;
    REQUIRE_OK(model_file_read(FIXTURES "/tinymoe-17m-q8_0.gguf", file));
    expert_memory memory;
    expert_memory_init(memory, file);
    CHECK_EQUAL(memory.layers.size(), 6u);
    CHECK_EQUAL(memory.layers[0].n_places, 3);
    // Not placed yet: that is an error, not a crash.
    CHECK_EQUAL(expert_memory_check(memory).code, ENGINE_MODEL_FORMAT);

    ggml_init_params params{ggml_tensor_overhead() * 64, nullptr, true};
    ggml_context * context = ggml_init(params);
    for (const auto & t : file.header.tensors) {
        int32_t block;
        std::string kind;
        if (!expert_tensor_name(t.name, block, kind)) continue;
        ggml_set_name(ggml_new_tensor(context, ggml_type(t.type), t.dims, t.ne), t.name.c_str());
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, &memory.type);
    CHECK(buffer != nullptr);
    REQUIRE_OK(expert_memory_check(memory));
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(memory.layers[3].places[1].base) % memory.page, 0u);
    expert_memory_mark(memory, 2, 7);
    expert_memory_mark(memory, 2, 7);
    CHECK_EQUAL(memory.resident_bytes.load(), 78336);
    expert_memory_release(memory, 2, 7);
    expert_memory_release(memory, 2, 7);
    CHECK_EQUAL(memory.resident_bytes.load(), 0);
    expert_memory_mark(memory, 0, 0);
    expert_memory_clear(memory);
    CHECK_EQUAL(memory.resident_bytes.load(), 0);
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
}

int main() {
    spares_pages_of_present_neighbours(26112, 32);
    spares_pages_of_present_neighbours(100, 200);
    spares_pages_of_present_neighbours(4096, 9);
    spares_pages_of_present_neighbours(12288 + 32, 5);
    places_matrices_and_counts_bytes();
    return checks_done();
}
