#include "bench-modes.h"

#include "file-descriptor.h"
#include "status.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <sys/stat.h>
#include <thread>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace {

const uint64_t BLOCK = 4096;
const uint64_t MOST_SLICE = 64 << 20;

int fail(const std::string & path, int error) {
    fprintf(stderr, "%s: %s\n", path.c_str(), strerror(error));
    return 1;
}

struct burst {
    int fd;
    uint64_t offset, bytes, slice;
    std::atomic<uint64_t> next{0};
    std::atomic<int> error{0};
};

void read_slices(burst & b, char * to) {
    for (;;) {
        const uint64_t at = b.next.fetch_add(b.slice);
        if (at >= b.bytes || b.error.load()) return;
        const uint64_t ask = std::min(b.slice, b.bytes - at);
        for (uint64_t have = 0; have < ask;) {
            const ssize_t got = pread(b.fd, to + have, size_t(ask - have), off_t(b.offset + at + have));
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) {
                b.error.store(got < 0 ? errno : EIO);
                return;
            }
            have += uint64_t(got);
        }
    }
}

void pause_for(int64_t ns) {
    timespec time{time_t(ns / 1000000000), long(ns % 1000000000)};
    while (nanosleep(&time, &time) != 0 && errno == EINTR) {}
}

uint64_t whole_blocks(uint64_t bytes) { return (bytes + BLOCK - 1) / BLOCK * BLOCK; }

}  // namespace

int read_probe(const probe_options & o) {
    const file_descriptor file(open(o.path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
    if (file.fd < 0) return fail(o.path, errno);
    struct stat info;
    if (fstat(file.fd, &info) != 0) return fail(o.path, errno);
    const uint64_t slice = whole_blocks(o.slice_bytes), bytes = whole_blocks(o.burst_bytes);
    if (slice > MOST_SLICE || o.lanes > 64 || uint64_t(info.st_size) < bytes + BLOCK) return fail(o.path, EINVAL);

    std::vector<char *> buffers(size_t(o.lanes), nullptr);
    for (char *& buffer : buffers) {
        void * memory = nullptr;
        if (posix_memalign(&memory, BLOCK, slice) != 0) return fail(o.path, ENOMEM);
        // Touched now, so that no page is zeroed while reading is timed.
        memset(memory, 1, slice);
        buffer = static_cast<char *>(memory);
    }
    std::mt19937_64 random(1);
    const int64_t start = now_ns();
    int64_t counted_from = start, reading = 0;
    uint64_t read = 0;
    for (int64_t now = start; now - start < o.for_ns; now = now_ns()) {
        if (reading == 0 || now - start < o.skip_ns) {
            counted_from = now;
            reading = 0;
            read = 0;
        }
        burst b{file.fd, random() % ((uint64_t(info.st_size) - bytes) / BLOCK) * BLOCK, bytes, slice};
        const int64_t before = now_ns();
        std::vector<std::thread> lanes;
        for (int32_t i = 1; i < o.lanes; i++) lanes.emplace_back(read_slices, std::ref(b), buffers[size_t(i)]);
        read_slices(b, buffers[0]);
        for (std::thread & lane : lanes) lane.join();
        if (b.error.load()) return fail(o.path, b.error.load());
        reading += now_ns() - before;
        read += bytes;
        if (o.pause_ns > 0) pause_for(o.pause_ns);
    }
    printf("{\"bytes\":%llu,\"readNs\":%lld,\"elapsedNs\":%lld}\n", (unsigned long long) read, (long long) reading,
           (long long) (now_ns() - counted_from));
    for (char * buffer : buffers) free(buffer);
    return 0;
}

int drop_cache(const std::string & path) {
    const file_descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.fd < 0) return fail(path, errno);
    // Pages that are still to be written cannot be dropped.
    if (fdatasync(file.fd) != 0) return fail(path, errno);
    const int error = posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
    return error ? fail(path, error) : 0;
}
