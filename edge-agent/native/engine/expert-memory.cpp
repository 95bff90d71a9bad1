#include "expert-memory.h"

#include <algorithm>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace {

struct reservation {
    void * base;
    size_t bytes;
    expert_memory * memory;
};

expert_memory * memory_of(ggml_backend_buffer_type_t type) { return static_cast<expert_memory *>(type->context); }

const char * type_name(ggml_backend_buffer_type_t) { return "experts"; }

// Page alignment keeps tensors from sharing pages and lets O_DIRECT read in place where the file is aligned too.
size_t type_alignment(ggml_backend_buffer_type_t type) { return memory_of(type)->page; }

bool type_is_host(ggml_backend_buffer_type_t) { return true; }

void buffer_free(ggml_backend_buffer_t buffer) {
    auto * r = static_cast<reservation *>(buffer->context);
    if (r->base) munmap(r->base, r->bytes);
    delete r;
}

void * buffer_base(ggml_backend_buffer_t buffer) { return static_cast<reservation *>(buffer->context)->base; }

// llama.cpp places its tensors: note where each expert matrix came to lie.
ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    expert_memory & memory = *static_cast<reservation *>(buffer->context)->memory;
    for (auto & layer : memory.layers) {
        for (int i = 0; i < layer.n_places; i++) {
            expert_place & place = layer.places[i];
            if (strcmp(place.tensor, tensor->name) != 0) continue;
            if (ggml_nbytes(tensor) != place.bytes * uint64_t(memory.experts) || tensor->nb[2] != place.bytes) {
                memory.placement_failed = true;
            }
            place.base = static_cast<char *>(tensor->data);
        }
    }
    return GGML_STATUS_SUCCESS;
}

void buffer_memset(ggml_backend_buffer_t, ggml_tensor * t, uint8_t v, size_t offset, size_t n) {
    memset(static_cast<char *>(t->data) + offset, v, n);
}
void buffer_set(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t n) {
    memcpy(static_cast<char *>(t->data) + offset, data, n);
}
void buffer_get(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t n) {
    memcpy(data, static_cast<const char *>(t->data) + offset, n);
}
// A reservation reads as zeros already; writing them would bring in every page.
void buffer_clear(ggml_backend_buffer_t, uint8_t) {}

const ggml_backend_buffer_i BUFFER = {
    buffer_free, buffer_base, buffer_init_tensor, buffer_memset, buffer_set, buffer_get,
    nullptr, nullptr, nullptr, buffer_clear, nullptr,
};

ggml_backend_buffer_t type_alloc(ggml_backend_buffer_type_t type, size_t bytes) {
    auto * r = new reservation{nullptr, std::max<size_t>(bytes, 1), memory_of(type)};
    void * base = mmap(nullptr, r->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        delete r;
        return nullptr;
    }
    madvise(base, r->bytes, MADV_NOHUGEPAGE);
    madvise(base, r->bytes, MADV_DONTDUMP);
    r->base = base;
    return ggml_backend_buffer_init(type, BUFFER, r, bytes);
}

// Half of the kernel's default limit of mappings: each expert that was moved is one for each of its matrices.
const uint64_t MOST_MAPPINGS = 32000;

bool may_move_pages(const expert_memory & memory) {
    uint64_t mappings = 0;
    for (const auto & layer : memory.layers) {
        mappings += uint64_t(layer.n_places) * uint64_t(memory.experts);
        for (int i = 0; i < layer.n_places; i++) {
            if (layer.places[i].bytes % memory.page != 0) return false;
        }
    }
    return mappings <= MOST_MAPPINGS;
}

}  // namespace

void expert_memory_init(expert_memory & memory, const model_file & file) {
    memory.page = size_t(sysconf(_SC_PAGESIZE));
    memory.experts = file.info.experts;
    memory.layers.clear();
    for (const auto & from : file.layers) {
        layer_memory layer;
        layer.expert_bytes = from.expert_bytes;
        layer.present.assign(size_t(memory.experts), 0);
        layer.held.assign(size_t(memory.experts), 0);
        for (const auto & m : from.matrices) {
            expert_place & place = layer.places[layer.n_places++];
            place.bytes = m.expert_bytes;
            place.file_offset = m.offset;
            strncpy(place.tensor, m.tensor.c_str(), sizeof(place.tensor) - 1);
        }
        memory.layers.push_back(std::move(layer));
    }
    memory.moves_pages = may_move_pages(memory);
    memory.spares.reserve(memory.layers.size() * size_t(memory.experts) * EXPERT_MATRICES);
    memset(&memory.type, 0, sizeof(memory.type));
    memory.type.iface.get_name = type_name;
    memory.type.iface.alloc_buffer = type_alloc;
    memory.type.iface.get_alignment = type_alignment;
    memory.type.iface.is_host = type_is_host;
    memory.type.device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    memory.type.context = &memory;
}

engine_status expert_memory_check(const expert_memory & memory) {
    for (const auto & layer : memory.layers) {
        for (int i = 0; i < layer.n_places; i++) {
            const expert_place & place = layer.places[i];
            if (!place.base || memory.placement_failed) {
                return status_error(ENGINE_MODEL_FORMAT, "%s: llama.cpp does not use this tensor as the file describes it", place.tensor);
            }
        }
    }
    return {};
}

void expert_memory_forget_places(expert_memory & memory) {
    for (auto & layer : memory.layers) {
        for (int i = 0; i < layer.n_places; i++) layer.places[i].base = nullptr;
    }
    memory.placement_failed = false;
}

void expert_pages_release(char * base, uint64_t bytes, int experts, const uint8_t * held, int e, size_t page, uint8_t mask) {
    const uint64_t begin = uint64_t(e) * bytes, end = begin + bytes;
    uint64_t first = begin / page, last = (end - 1) / page;
    const auto shared = [&](uint64_t p) {
        const uint64_t from = p * page / bytes;
        const uint64_t to = std::min<uint64_t>(((p + 1) * page - 1) / bytes, uint64_t(experts) - 1);
        for (uint64_t other = from; other <= to; other++) {
            if (other != uint64_t(e) && (held[other] & mask)) return true;
        }
        return false;
    };
    if (shared(first)) first++;
    if (last >= first && shared(last)) {
        if (last == 0) return;
        last--;
    }
    if (last < first) return;
    madvise(base + first * page, (last - first + 1) * page, MADV_DONTNEED);
}

static uint8_t bit_of(int place) { return uint8_t(1u << place); }
static_assert(EXPERT_MATRICES <= 8, "a bit of `held` for each");

static void give_back(expert_memory & memory, int layer, int expert, int place) {
    layer_memory & l = memory.layers[size_t(layer)];
    expert_pages_release(l.places[place].base, l.places[place].bytes, memory.experts, l.held.data(), expert, memory.page, bit_of(place));
}

static int64_t bytes_of(const expert_memory & memory, const spare_matrix & spare) {
    return int64_t(memory.layers[size_t(spare.layer)].places[spare.place].bytes);
}

static void trim_spares(expert_memory & memory) {
    size_t surplus = 0;
    while (surplus < memory.spares.size() && memory.resident_bytes.load(std::memory_order_relaxed) + memory.spare_bytes > memory.most_bytes + memory.passing_bytes) {
        const spare_matrix & spare = memory.spares[surplus++];
        memory.spare_bytes -= bytes_of(memory, spare);
        give_back(memory, spare.layer, spare.expert, spare.place);
    }
    memory.spares.erase(memory.spares.begin(), memory.spares.begin() + long(surplus));
}

// Moves the pages of a spare under a matrix of its size; what the kernel does not move is given back.
static void move_pages(expert_memory & memory, const spare_matrix & spare, const expert_place & to, int expert) {
    const expert_place & from = memory.layers[size_t(spare.layer)].places[spare.place];
    char * source = from.base + uint64_t(spare.expert) * from.bytes;
    char * target = to.base + uint64_t(expert) * to.bytes;
    if (mremap(source, from.bytes, from.bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target) == MAP_FAILED) {
        madvise(source, from.bytes, MADV_DONTNEED);
    }
}

// Pages for a matrix that is held from now on: its own where they are a spare still, or else any of its size.
static void take_spare(expert_memory & memory, int layer, int expert, int place) {
    const expert_place & to = memory.layers[size_t(layer)].places[place];
    int chosen = -1;
    bool itself = false;
    for (int i = int(memory.spares.size()) - 1; i >= 0 && !itself; i--) {
        const spare_matrix & spare = memory.spares[size_t(i)];
        itself = spare.layer == layer && spare.expert == expert && spare.place == place;
        if (itself || (chosen < 0 && bytes_of(memory, spare) == int64_t(to.bytes))) chosen = i;
    }
    if (chosen < 0) return;
    const spare_matrix spare = memory.spares[size_t(chosen)];
    memory.spares.erase(memory.spares.begin() + chosen);
    memory.spare_bytes -= int64_t(to.bytes);
    if (!itself) move_pages(memory, spare, to, expert);
}

void expert_memory_hold_part(expert_memory & memory, int layer, int expert, int place) {
    layer_memory & l = memory.layers[size_t(layer)];
    if (l.held[size_t(expert)] & bit_of(place)) return;
    l.held[size_t(expert)] |= bit_of(place);
    const int64_t bytes = int64_t(l.places[place].bytes);
    const int64_t before = memory.resident_bytes.fetch_add(bytes, std::memory_order_relaxed);
    memory.peak_bytes = std::max(memory.peak_bytes, before + bytes);
    take_spare(memory, layer, expert, place);
    trim_spares(memory);
}

void expert_memory_hold(expert_memory & memory, int layer, int expert) {
    for (int p = 0; p < memory.layers[size_t(layer)].n_places; p++) expert_memory_hold_part(memory, layer, expert, p);
}

void expert_memory_set_most(expert_memory & memory, int64_t bytes) {
    memory.most_bytes = bytes;
    trim_spares(memory);
}

void expert_memory_set_passing(expert_memory & memory, int64_t bytes) {
    memory.passing_bytes = bytes;
    trim_spares(memory);
}

void expert_memory_mark(expert_memory & memory, int layer, int expert) {
    expert_memory_hold(memory, layer, expert);
    memory.layers[size_t(layer)].present[size_t(expert)] = 1;
}

void expert_memory_release_part(expert_memory & memory, int layer, int expert, int place) {
    layer_memory & l = memory.layers[size_t(layer)];
    l.present[size_t(expert)] = 0;
    if (!(l.held[size_t(expert)] & bit_of(place))) return;
    l.held[size_t(expert)] &= uint8_t(~bit_of(place));
    const int64_t bytes = int64_t(l.places[place].bytes);
    const int64_t rest = memory.resident_bytes.fetch_sub(bytes, std::memory_order_relaxed) - bytes;
    if (memory.moves_pages && rest + memory.spare_bytes + bytes <= memory.most_bytes + memory.passing_bytes) {
        memory.spares.push_back({layer, expert, place});
        memory.spare_bytes += bytes;
    } else {
        give_back(memory, layer, expert, place);
    }
}

void expert_memory_release(expert_memory & memory, int layer, int expert) {
    for (int p = 0; p < memory.layers[size_t(layer)].n_places; p++) expert_memory_release_part(memory, layer, expert, p);
}

void expert_memory_clear(expert_memory & memory) {
    for (auto & layer : memory.layers) {
        std::fill(layer.present.begin(), layer.present.end(), 0);
        std::fill(layer.held.begin(), layer.held.end(), 0);
        for (int i = 0; i < layer.n_places; i++) {
            if (!layer.places[i].base) continue;
            const uint64_t bytes = layer.places[i].bytes * uint64_t(memory.experts);
            madvise(layer.places[i].base, (bytes + memory.page - 1) / memory.page * memory.page, MADV_DONTNEED);
        }
    }
    memory.resident_bytes.store(0, std::memory_order_relaxed);
    memory.spare_bytes = 0;
    memory.spares.clear();
}
