#include "bench-modes.h"

#include "flash-reader.h"
#include "model-file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <random>
#include <time.h>

namespace {

int fail(const std::string & path, const char * why) {
    fprintf(stderr, "%s: %s\n", path.c_str(), why);
    return 1;
}

void pause_for(int64_t ns) {
    timespec time{time_t(ns / 1000000000), long(ns % 1000000000)};
    while (nanosleep(&time, &time) != 0 && errno == EINTR) {}
}

// Room for the experts of one layer. Touched beforehand, so that no page is zeroed while reading is timed.
struct landing {
    char * memory = nullptr;
    uint64_t room;  // of one matrix
    landing(uint64_t matrix_bytes, int32_t matrices) : room(matrix_bytes / FLASH_BLOCK * FLASH_BLOCK + 2 * FLASH_BLOCK) {
        void * got = nullptr;
        if (posix_memalign(&got, FLASH_BLOCK, room * uint64_t(matrices)) != 0) return;
        memset(got, 1, room * uint64_t(matrices));
        memory = static_cast<char *>(got);
    }
    ~landing() { free(memory); }
    landing(const landing &) = delete;
};

struct probe {
    model_file file;
    flash_reader reader;
    std::unique_ptr<flash_request[]> requests;
    std::mt19937_64 random{1};
};

// The reads of one layer that misses `n` experts, as miss-fetch.cpp asks for them: matrix by matrix, each into memory
// as far from a block boundary as the engine's. False where one failed.
bool read_layer(probe & p, const expert_layer & layer, const landing & to, int32_t n, uint64_t & bytes) {
    int32_t count = 0;
    std::vector<uint64_t> experts;
    while (int32_t(experts.size()) < n) {
        const uint64_t e = p.random() % uint64_t(p.file.info.experts);
        if (std::find(experts.begin(), experts.end(), e) == experts.end()) experts.push_back(e);
    }
    for (const expert_matrix & matrix : layer.matrices) {
        for (const uint64_t e : experts) {
            const uint64_t at = e * matrix.expert_bytes;
            char * target = to.memory + uint64_t(count) * to.room + at % FLASH_BLOCK;
            flash_request_set(p.requests[size_t(count)], matrix.offset + at, matrix.expert_bytes, target, matrix.tensor.c_str());
            flash_reader_start(p.reader, p.requests[size_t(count++)], FLASH_DEMAND);
            bytes += matrix.expert_bytes;
        }
    }
    flash_reader_ring(p.reader);
    for (int32_t i = 0; i < count; i++) flash_reader_wait(p.reader, p.requests[size_t(i)]);
    return std::all_of(p.requests.get(), p.requests.get() + count, [](const flash_request & r) { return r.error.load() == 0; });
}

// A token's misses, dealt to the layers at random.
std::vector<int32_t> deal(probe & p, int32_t misses) {
    std::vector<int32_t> by_layer(p.file.layers.size(), 0);
    misses = std::min<int32_t>(misses, int32_t(by_layer.size()) * p.file.info.top_k);
    while (misses > 0) {
        int32_t & n = by_layer[size_t(p.random() % by_layer.size())];
        if (n == p.file.info.top_k) continue;
        n++;
        misses--;
    }
    return by_layer;
}

}  // namespace

int read_probe(const probe_options & o) {
    probe p;
    engine_status status = model_file_read(o.path, p.file);
    const int32_t most = p.file.info.top_k * EXPERT_MATRICES;
    if (!failed(status)) status = flash_reader_open(p.reader, p.file.info.files, true, o.lanes, most, o.bytes_per_second);
    if (failed(status)) return fail(o.path, status.message);
    p.requests.reset(new flash_request[size_t(most)]);
    uint64_t largest = 0;
    for (const auto & layer : p.file.layers) {
        for (const auto & matrix : layer.matrices) largest = std::max(largest, matrix.expert_bytes);
    }
    const landing to(largest, most);
    if (!to.memory) return fail(o.path, "no memory to read into");

    const int64_t start = now_ns();
    int64_t counted_from = start, reading = 0;
    uint64_t bytes = 0;
    bool skipping = true, fine = p.reader.direct;
    for (size_t token = 0; fine && now_ns() - start < o.for_ns; token++) {
        if (skipping && now_ns() - start >= o.skip_ns) {
            skipping = false;
            counted_from = now_ns();
            reading = 0;
            bytes = 0;
        }
        const std::vector<int32_t> by_layer = deal(p, o.misses[token % o.misses.size()]);
        for (size_t l = 0; fine && l < by_layer.size(); l++) {
            const int64_t before = now_ns();
            if (by_layer[l] > 0) fine = read_layer(p, p.file.layers[l], to, by_layer[l], bytes);
            reading += now_ns() - before;
            if (o.pause_ns > 0) pause_for(o.pause_ns);
        }
    }
    flash_reader_close(p.reader);
    if (!fine) return fail(o.path, "cannot be read with O_DIRECT");
    printf("{\"bytes\":%llu,\"readNs\":%lld,\"elapsedNs\":%lld}\n", (unsigned long long) bytes, (long long) reading,
           (long long) (now_ns() - counted_from));
    return 0;
}

int drop_cache(const std::string & path) {
    const file_descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.fd < 0) return fail(path, strerror(errno));
    // Pages that are still to be written cannot be dropped.
    if (fdatasync(file.fd) != 0) return fail(path, strerror(errno));
    const int error = posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
    return error ? fail(path, strerror(error)) : 0;
}
