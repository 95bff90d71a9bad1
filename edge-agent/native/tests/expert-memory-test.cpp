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

static int64_t backed_pages(const expert_place & place, int e, size_t page) {
    std::vector<unsigned char> resident(place.bytes / page);
    CHECK_EQUAL(mincore(place.base + uint64_t(e) * place.bytes, place.bytes, resident.data()), 0);
    int64_t pages = 0;
    for (const unsigned char r : resident) pages += r & 1;
    return pages;
}

// Experts of whole pages: what one leaves behind comes under the next, within the bound and without touching neighbours.
static void moves_pages_to_the_next_expert() {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    expert_memory memory;
    memory.experts = 8;
    memory.page = page;
    memory.moves_pages = true;
    memory.spares.reserve(16);
    for (int l = 0; l < 2; l++) {
        layer_memory layer;
        layer.n_places = 2;
        for (int p = 0; p < 2; p++) {
            expert_place & place = layer.places[p];
            place.bytes = uint64_t(p + 1) * 3 * page;
            place.base = static_cast<char *>(mmap(nullptr, place.bytes * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        }
        layer.expert_bytes = 9 * page;
        layer.present.assign(8, 0);
        layer.held.assign(8, 0);
        memory.layers.push_back(layer);
    }
    const auto fill = [&](int layer, int e) {
        expert_memory_hold(memory, layer, e);
        for (const expert_place & place : {memory.layers[size_t(layer)].places[0], memory.layers[size_t(layer)].places[1]}) {
            memset(place.base + uint64_t(e) * place.bytes, 10 * layer + e + 1, place.bytes);
        }
        expert_memory_mark(memory, layer, e);
    };
    const auto pages = [&](int layer, int e) {
        return backed_pages(memory.layers[size_t(layer)].places[0], e, page) + backed_pages(memory.layers[size_t(layer)].places[1], e, page);
    };
    const auto all_pages = [&] {
        int64_t sum = 0;
        for (int l = 0; l < 2; l++) {
            for (int e = 0; e < 8; e++) sum += pages(l, e);
        }
        return sum;
    };
    const auto whole = [&](int layer, int e) {
        for (const expert_place & place : {memory.layers[size_t(layer)].places[0], memory.layers[size_t(layer)].places[1]}) {
            for (uint64_t i = 0; i < place.bytes; i++) {
                if (place.base[uint64_t(e) * place.bytes + i] != char(10 * layer + e + 1)) return false;
            }
        }
        return true;
    };
    expert_memory_set_most(memory, 27 * int64_t(page));
    for (const int e : {1, 2, 3}) fill(0, e);
    expert_memory_release(memory, 0, 2);
    CHECK_EQUAL(memory.spares.size(), 2u);
    CHECK_EQUAL(pages(0, 2), 9);
    expert_memory_hold(memory, 1, 5);
    CHECK_EQUAL(pages(0, 2), 0);
    CHECK_EQUAL(pages(1, 5), 9);
    CHECK(whole(0, 1));
    CHECK(whole(0, 3));
    // An expert that comes back finds its own pages.
    expert_memory_release(memory, 0, 3);
    expert_memory_hold(memory, 0, 3);
    CHECK_EQUAL(memory.spares.size(), 0u);
    CHECK_EQUAL(pages(0, 3), 9);
    uint64_t state = 99;
    for (int round = 0; round < 500; round++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        const int layer = int(state >> 40) % 2, e = int(state >> 50) % 8;
        if (memory.layers[size_t(layer)].present[size_t(e)]) expert_memory_release(memory, layer, e);
        else if (memory.resident_bytes < 27 * int64_t(page)) fill(layer, e);
        CHECK(all_pages() <= 27);
        for (int l = 0; l < 2; l++) {
            for (int other = 0; other < 8; other++) {
                if (memory.layers[size_t(l)].present[size_t(other)]) CHECK(whole(l, other));
            }
        }
    }
    expert_memory_set_most(memory, 0);
    CHECK_EQUAL(memory.spares.size(), 0u);
    CHECK(all_pages() * int64_t(page) <= memory.resident_bytes);
    expert_memory_clear(memory);
    CHECK_EQUAL(all_pages(), 0);
    for (auto & layer : memory.layers) {
        for (int p = 0; p < 2; p++) munmap(layer.places[p].base, layer.places[p].bytes * 8);
    }
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
    moves_pages_to_the_next_expert();
    places_matrices_and_counts_bytes();
    return checks_done();
}
