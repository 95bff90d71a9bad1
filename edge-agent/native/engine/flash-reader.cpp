#include "flash-reader.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>

namespace {

// pread until `need` bytes are there or the file ends; returns errno, -1 for an early end, 0.
int read_fully(int fd, char * to, uint64_t ask, uint64_t need, uint64_t offset, int32_t & reads) {
    uint64_t have = 0;
    while (have < need) {
        const ssize_t got = pread(fd, to + have, ask - have, off_t(offset + have));
        reads++;
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (got == 0) return -1;
        have += uint64_t(got);
        // A short direct read that ended off a block boundary cannot be continued in place.
        if (have < need && have % FLASH_BLOCK != 0 && ask != need) return -1;
    }
    return 0;
}

bool in_place(const flash_slice & s) {
    return s.offset % FLASH_BLOCK == 0 && s.bytes % FLASH_BLOCK == 0 && uintptr_t(s.to) % FLASH_BLOCK == 0;
}

void read_slice(const flash_reader & reader, const flash_lane & lane, flash_slice & s) {
    s.begin_ns = now_ns();
    s.reads = 0;
    if (!reader.direct || in_place(s)) {
        s.error = read_fully(reader.file.fd, s.to, s.bytes, s.bytes, s.offset, s.reads);
    } else {
        const uint64_t from = s.offset / FLASH_BLOCK * FLASH_BLOCK;
        const uint64_t head = s.offset - from;
        const uint64_t ask = (head + s.bytes + FLASH_BLOCK - 1) / FLASH_BLOCK * FLASH_BLOCK;
        s.error = read_fully(reader.file.fd, lane.bounce, ask, head + s.bytes, from, s.reads);
        if (s.error == 0) memcpy(s.to, lane.bounce + head, s.bytes);
    }
    s.end_ns = now_ns();
}

void wait_for(sem_t & semaphore) {
    while (sem_wait(&semaphore) != 0 && errno == EINTR) {}
}

void lane_main(flash_reader & reader, flash_lane & lane) {
    for (;;) {
        wait_for(reader.wake);
        if (reader.stopping.load()) return;
        for (;;) {
            const int32_t i = reader.next.fetch_add(1);
            if (i >= reader.batch_size) break;
            read_slice(reader, lane, reader.batch[i]);
        }
        // The last lane out reports, so that no lane can still look at a batch when the next is handed in.
        if (reader.running.fetch_sub(1) == 1) sem_post(&reader.done);
    }
}

// Some file systems accept the flag and refuse the read.
bool direct_read_works(int fd) {
    void * block = nullptr;
    if (posix_memalign(&block, FLASH_BLOCK, FLASH_BLOCK) != 0) return false;
    const ssize_t got = pread(fd, block, FLASH_BLOCK, 0);
    free(block);
    return got >= 0;
}

}  // namespace

engine_status flash_reader_open(flash_reader & reader, const std::string & path, bool direct, int lanes) {
    if (lanes < 1 || lanes > 64) return status_error(ENGINE_BAD_ARGUMENT, "lanes: expected 1 to 64, found %d", lanes);
    if (direct) {
        reader.file = file_descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
        reader.direct = reader.file.fd >= 0 && direct_read_works(reader.file.fd);
    }
    if (!reader.direct) {
        reader.file = file_descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC));
        if (reader.file.fd < 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
        posix_fadvise(reader.file.fd, 0, 0, POSIX_FADV_RANDOM);
    }
    sem_init(&reader.wake, 0, 0);
    sem_init(&reader.done, 0, 0);
    reader.semaphores = true;
    reader.lanes.resize(size_t(lanes));
    for (auto & lane : reader.lanes) {
        void * bounce = nullptr;
        if (posix_memalign(&bounce, FLASH_BLOCK, FLASH_SLICE + 2 * FLASH_BLOCK) != 0) {
            return status_error(ENGINE_IO, "no memory for the read buffers");
        }
        lane.bounce = static_cast<char *>(bounce);
    }
    for (auto & lane : reader.lanes) lane.thread = std::thread(lane_main, std::ref(reader), std::ref(lane));
    return {};
}

void flash_reader_close(flash_reader & reader) {
    reader.stopping.store(true);
    for (size_t i = 0; i < reader.lanes.size(); i++) sem_post(&reader.wake);
    for (auto & lane : reader.lanes) {
        if (lane.thread.joinable()) lane.thread.join();
        free(lane.bounce);
    }
    reader.lanes.clear();
    if (reader.semaphores) {
        sem_destroy(&reader.wake);
        sem_destroy(&reader.done);
    }
    reader.semaphores = false;
    reader.file = file_descriptor();
}

int flash_slices(uint64_t offset, uint64_t bytes, char * to, int32_t tag, const char * tensor, flash_slice * out) {
    int n = 0;
    while (bytes > 0) {
        // Up to the next slice boundary of the file, so that all but the ragged ends are aligned.
        const uint64_t part = std::min<uint64_t>(bytes, FLASH_SLICE - offset % FLASH_SLICE);
        out[n] = flash_slice();
        out[n].offset = offset;
        out[n].bytes = part;
        out[n].to = to;
        out[n].tag = tag;
        out[n].tensor = tensor;
        n++;
        offset += part;
        to += part;
        bytes -= part;
    }
    return n;
}

engine_status flash_reader_read(flash_reader & reader, flash_slice * slices, int n) {
    if (n == 0) return {};
    const int32_t woken = std::min<int32_t>(n, int32_t(reader.lanes.size()));
    reader.batch = slices;
    reader.batch_size = n;
    reader.next.store(0);
    reader.running.store(woken);
    for (int32_t i = 0; i < woken; i++) sem_post(&reader.wake);
    wait_for(reader.done);
    for (int i = 0; i < n; i++) {
        if (slices[i].error == 0) continue;
        return status_error(ENGINE_IO, "%s: reading %llu bytes at offset %llu failed: %s", slices[i].tensor,
                            (unsigned long long) slices[i].bytes, (unsigned long long) slices[i].offset,
                            slices[i].error < 0 ? "the file ended early" : strerror(slices[i].error));
    }
    return {};
}
