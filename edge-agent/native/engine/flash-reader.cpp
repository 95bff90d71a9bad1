#include "flash-reader.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

namespace {

// Sleeps while `word` holds `seen`. Spurious returns are fine: callers look again.
void futex_wait(std::atomic<uint32_t> & word, uint32_t seen) {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void futex_wake_all(std::atomic<uint32_t> & word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "futex words are plain");

void queue_init(flash_queue & q, int most) {
    q.capacity = 1;
    while (q.capacity < uint64_t(most)) q.capacity *= 2;
    q.slots.reset(new std::atomic<flash_request *>[q.capacity]());
    q.head = q.tail = 0;
}

bool has_piece(const flash_request & r) { return r.next.load(std::memory_order_acquire) < r.pieces.load(std::memory_order_relaxed); }

// The oldest request of which a piece is on offer, or null. Between reading a slot and using it the producer may have
// put another request there; that one is on offer just as well.
flash_request * queue_front(flash_queue & q) {
    for (;;) {
        uint64_t head = q.head.load(std::memory_order_acquire);
        if (head == q.tail.load(std::memory_order_acquire)) return nullptr;
        flash_request * r = q.slots[head & (q.capacity - 1)].load(std::memory_order_acquire);
        if (has_piece(*r)) return r;
        q.head.compare_exchange_strong(head, head + 1);
    }
}

bool queue_push(flash_queue & q, flash_request & r) {
    const uint64_t tail = q.tail.load(std::memory_order_relaxed);
    if (tail - q.head.load(std::memory_order_acquire) == q.capacity) return false;
    q.slots[tail & (q.capacity - 1)].store(&r, std::memory_order_release);
    q.tail.store(tail + 1, std::memory_order_release);
    return true;
}

// Where piece i of a request begins in the file. Pieces end at multiples of FLASH_PIECE of the file, so that all but the
// ragged ends are aligned.
uint64_t piece_offset(const flash_request & r, int32_t i) {
    return std::clamp((r.offset / FLASH_PIECE + uint64_t(i)) * FLASH_PIECE, r.offset, r.offset + r.bytes);
}

// Pieces that nobody else will take, [first, end): to the end of the slice, or a single one.
struct taken_pieces { int32_t first = 0, end = 0; };

taken_pieces take_pieces(flash_request & r, bool single) {
    const int32_t pieces = r.pieces.load();
    int32_t i = r.next.load(std::memory_order_acquire);
    while (i < pieces) {
        const int32_t in_slice = int32_t((r.offset / FLASH_PIECE + uint64_t(i)) % (FLASH_SLICE / FLASH_PIECE));
        const int32_t end = single ? i + 1 : std::min<int32_t>(pieces, i + FLASH_SLICE / FLASH_PIECE - in_slice);
        if (r.next.compare_exchange_weak(i, end, std::memory_order_acq_rel)) return {i, end};
    }
    return {};
}

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

int read_range(const flash_reader & reader, const flash_lane & lane, char * to, uint64_t bytes, uint64_t position, int32_t & reads) {
    const int fd = reader.files.files[position_file(position)].fd;
    const uint64_t offset = position_offset(position);
    const bool in_place = offset % FLASH_BLOCK == 0 && bytes % FLASH_BLOCK == 0 && uintptr_t(to) % FLASH_BLOCK == 0;
    if (!reader.direct || in_place) return read_fully(fd, to, bytes, bytes, offset, reads);
    const uint64_t from = offset / FLASH_BLOCK * FLASH_BLOCK;
    const uint64_t head = offset - from;
    const uint64_t ask = (head + bytes + FLASH_BLOCK - 1) / FLASH_BLOCK * FLASH_BLOCK;
    const int error = read_fully(fd, lane.bounce, ask, head + bytes, from, reads);
    if (error == 0) memcpy(to, lane.bounce + head, bytes);
    return error;
}

// When a disk of the reader's pace would have served these bytes, asked for now.
int64_t paced_end(flash_reader & reader, uint64_t bytes) {
    const int64_t asked = now_ns(), takes = int64_t(double(bytes) * reader.pace_ns_per_byte);
    int64_t free = reader.pace_free_ns.load(), end;
    do {
        end = std::max(asked, free) + takes;
    } while (!reader.pace_free_ns.compare_exchange_weak(free, end));
    return end;
}

void sleep_until(int64_t ns) {
    const timespec time{time_t(ns / 1000000000), long(ns % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {}
}

void read_pieces(flash_reader & reader, flash_lane & lane, flash_request & r, taken_pieces pieces) {
    const uint64_t from = piece_offset(r, pieces.first), until = piece_offset(r, pieces.end);
    const int64_t begin = now_ns();
    int64_t unset = 0;
    r.begin_ns.compare_exchange_strong(unset, begin);
    const int64_t due = reader.pace_ns_per_byte > 0 ? paced_end(reader, until - from) : 0;
    int32_t reads = 0;
    const int error = read_range(reader, lane, r.to + (from - r.offset), until - from, from, reads);
    if (due > 0) sleep_until(due);
    const int64_t end = now_ns();
    if (error) r.error.store(error);
    r.reads.fetch_add(reads);
    for (int64_t last = r.end_ns.load(); last < end && !r.end_ns.compare_exchange_weak(last, end);) {}
    lane.read_micros_log2[read_time_bucket(end - begin)].add(1);
    // From here on the memory read into is the producer's again.
    r.finished.fetch_add(pieces.end - pieces.first, std::memory_order_release);
    reader.progress.fetch_add(1);
    if (reader.watched.load()) futex_wake_all(reader.progress);
}

bool work(flash_reader & reader, flash_lane & lane, flash_priority priority) {
    flash_request * r = queue_front(reader.queues[priority]);
    if (!r) return false;
    const taken_pieces pieces = take_pieces(*r, priority == FLASH_SPECULATIVE);
    if (pieces.end > pieces.first) read_pieces(reader, lane, *r, pieces);
    return true;
}

// One lane at a time. Those turned away may have turned each other away, so the last of them looks again.
bool speculate(flash_reader & reader, flash_lane & lane) {
    const bool first = reader.speculating.fetch_add(1) == 0;
    const bool worked = first && work(reader, lane, FLASH_SPECULATIVE);
    return (reader.speculating.fetch_sub(1) == 1 && !first) || worked;
}

void lane_main(flash_reader & reader, flash_lane & lane) {
    for (;;) {
        const uint32_t bell = reader.bell.load();
        if (reader.stopping.load()) return;
        if (!work(reader, lane, FLASH_DEMAND) && !speculate(reader, lane)) futex_wait(reader.bell, bell);
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

bool open_direct(model_files & m, const std::vector<std::string> & paths) {
    m.files.clear();
    for (const auto & path : paths) {
        m.files.emplace_back(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
        if (m.files.back().fd < 0 || !direct_read_works(m.files.back().fd)) return false;
    }
    return true;
}

}  // namespace

engine_status flash_reader_open(flash_reader & reader, const std::vector<std::string> & paths, bool direct, int lanes, int most_requests,
                                uint64_t bytes_per_second) {
    if (lanes < 1 || lanes > 64) return status_error(ENGINE_BAD_ARGUMENT, "lanes: expected 1 to 64, found %d", lanes);
    reader.direct = direct && open_direct(reader.files, paths);
    if (!reader.direct) {
        const engine_status status = model_files_open(reader.files, paths);
        if (failed(status)) return status;
        for (const auto & file : reader.files.files) posix_fadvise(file.fd, 0, 0, POSIX_FADV_RANDOM);
    }
    for (auto & queue : reader.queues) queue_init(queue, most_requests);
    reader.pace_ns_per_byte = bytes_per_second ? 1e9 / double(bytes_per_second) : 0;
    reader.lanes.reset(new flash_lane[size_t(lanes)]);
    reader.lane_count = lanes;
    for (int i = 0; i < lanes; i++) {
        void * bounce = nullptr;
        if (posix_memalign(&bounce, FLASH_BLOCK, FLASH_SLICE + 2 * FLASH_BLOCK) != 0) {
            return status_error(ENGINE_IO, "no memory for the read buffers");
        }
        reader.lanes[size_t(i)].bounce = static_cast<char *>(bounce);
    }
    for (int i = 0; i < lanes; i++) {
        flash_lane & lane = reader.lanes[size_t(i)];
        lane.thread = std::thread(lane_main, std::ref(reader), std::ref(lane));
    }
    return {};
}

void flash_reader_close(flash_reader & reader) {
    reader.stopping.store(true);
    flash_reader_ring(reader);
    for (int i = 0; i < reader.lane_count; i++) {
        flash_lane & lane = reader.lanes[size_t(i)];
        if (lane.thread.joinable()) lane.thread.join();
        free(lane.bounce);
    }
    reader.lanes.reset();
    reader.lane_count = 0;
    reader.files = model_files();
}

void flash_request_set(flash_request & r, uint64_t offset, uint64_t bytes, char * to, const char * tensor) {
    r.pieces = 0;  // a lane that still finds it in a queue takes nothing
    r.offset = offset;
    r.bytes = bytes;
    r.to = to;
    r.tensor = tensor;
    r.resume = r.target = 0;
    r.finished.store(0);
    r.reads.store(0);
    r.error.store(0);
    r.begin_ns.store(0);
    r.end_ns.store(0);
    const int32_t pieces = int32_t((offset + bytes - 1) / FLASH_PIECE - offset / FLASH_PIECE + 1);
    r.next.store(pieces);
    r.pieces = pieces;
}

bool flash_reader_start(flash_reader & reader, flash_request & r, flash_priority priority) {
    queue_front(reader.queues[priority]);  // makes room: once `r` is on offer again, its old places are not free any more
    if (r.target < r.pieces) {
        r.target = r.pieces;
        r.next.store(r.resume, std::memory_order_release);
    } else if (!has_piece(r)) {
        return true;
    }
    if (queue_push(reader.queues[priority], r)) return true;
    flash_request_withdraw(r);
    return false;
}

void flash_reader_ring(flash_reader & reader) {
    reader.bell.fetch_add(1);
    futex_wake_all(reader.bell);
}

void flash_request_withdraw(flash_request & r) {
    if (r.target < r.pieces) return;  // not on offer
    r.target = r.resume = r.next.exchange(r.pieces, std::memory_order_acq_rel);
}

void flash_reader_forget(flash_reader & reader, flash_priority priority) {
    flash_queue & q = reader.queues[priority];
    const uint64_t tail = q.tail.load(std::memory_order_relaxed);
    for (uint64_t head = q.head.load(); head != tail && !q.head.compare_exchange_weak(head, tail);) {}
}

void flash_reader_wait(flash_reader & reader, const flash_request & r) {
    if (flash_request_settled(r)) return;
    reader.watched.store(true);
    for (;;) {
        const uint32_t seen = reader.progress.load();
        if (flash_request_settled(r)) break;
        futex_wait(reader.progress, seen);
    }
    reader.watched.store(false);
}

engine_status flash_request_status(const flash_request & r) {
    const int32_t error = r.error.load();
    if (error == 0) return {};
    return status_error(ENGINE_IO, "%s: reading %llu bytes at offset %llu failed: %s", r.tensor, (unsigned long long) r.bytes,
                        (unsigned long long) position_offset(r.offset), error < 0 ? "the file ended early" : strerror(error));
}
