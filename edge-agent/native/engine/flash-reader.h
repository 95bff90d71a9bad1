// Reads expert bytes from flash with a few parallel lanes (threads). With O_DIRECT a slice goes straight into place
// where file offset, address and size are multiples of FLASH_BLOCK, and through the lane's bounce buffer otherwise;
// where the file system refuses O_DIRECT, reads are buffered.
//
// A request is one range of one of the model's files, at a position (model-shards.h), cut into pieces. One thread, the producer, starts requests at one of two
// priorities. Lanes take demands before guesses, a demand by the slice (several pieces in one read) and a guess by the
// piece and one lane only, so that a demand waits for no more than the slices in flight and one piece. A request may be
// withdrawn: what is in flight finishes, the other pieces stay unread until it is started again.
// Producer and lanes share atomics and two futex words; nothing here allocates or locks once the reader is open.
#pragma once

#include "counters.h"
#include "model-shards.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

// A multiple of every logical block size in use (512 and 4096).
enum { FLASH_BLOCK = 4096 };
// Flash is flat above 256 KiB per read; 1 MiB keeps the bounce buffers small and lets lanes share one expert.
enum { FLASH_PIECE = 256 << 10, FLASH_SLICE = 1 << 20 };

// Lives as long as the reader: a lane may look at it at any time. All but what lanes fill in belongs to the producer.
struct flash_request {
    uint64_t offset = 0, bytes = 0;       // its position
    char * to = nullptr;
    const char * tensor = "";             // for error messages
    std::atomic<int32_t> pieces{0};
    int32_t resume = 0;                   // first piece that was not taken before it was withdrawn
    int32_t target = 0;                   // pieces that will be finished once nothing is in flight
    // filled in by lanes
    std::atomic<int32_t> next{0};         // piece to take; `pieces`: none is left, or none is on offer
    std::atomic<int32_t> finished{0};
    std::atomic<int32_t> reads{0};
    std::atomic<int32_t> error{0};        // errno; -1: the file ended early; of the read that failed last
    std::atomic<int64_t> begin_ns{0}, end_ns{0};
};

enum flash_priority { FLASH_DEMAND, FLASH_SPECULATIVE, FLASH_PRIORITIES };

// Requests on offer, oldest first. One producer; the lanes and the producer drop those of which no piece is left.
struct flash_queue {
    std::unique_ptr<std::atomic<flash_request *>[]> slots;
    uint64_t capacity = 0;                // a power of two
    std::atomic<uint64_t> head{0}, tail{0};
};

struct flash_lane {
    std::thread thread;
    char * bounce = nullptr;              // FLASH_SLICE + 2 * FLASH_BLOCK bytes, aligned to FLASH_BLOCK
    counter<int64_t> read_micros_log2[READ_TIME_BUCKETS];  // by read
};

struct flash_reader {
    model_files files;
    bool direct = false;
    int32_t lane_count = 0;
    std::unique_ptr<flash_lane[]> lanes;
    flash_queue queues[FLASH_PRIORITIES];
    std::atomic<uint32_t> bell{0};        // futex: rung when there may be work
    std::atomic<uint32_t> progress{0};    // futex: moves with every read that is finished
    std::atomic<bool> watched{false};     // the producer waits for progress
    std::atomic<int32_t> speculating{0};  // lanes at a guess, or finding out that another is
    double pace_ns_per_byte = 0;          // 0: as fast as the disk is
    std::atomic<int64_t> pace_free_ns{0}; // when the disk of that pace has served all that it was asked for
    std::atomic<bool> stopping{false};
    flash_reader() = default;
    flash_reader(const flash_reader &) = delete;
};

// IO. `direct` asks for O_DIRECT; `reader.direct` says whether every file gave it, or else none is read so. 1 <= lanes <= 64. `most_requests` bounds how many
// requests are started and not done at one time, for each priority. `bytes_per_second` above 0 has reads arrive as a disk
// of that speed would deliver them which serves one after another and never makes up for idle time, as a throttle of
// the kernel does.
engine_status flash_reader_open(flash_reader & reader, const std::vector<std::string> & paths, bool direct, int lanes, int most_requests,
                                uint64_t bytes_per_second = 0);
// Returns when no lane reads any more; requests that were not done stay unread.
void flash_reader_close(flash_reader & reader);

// What to read, with nothing read yet. Nothing of `r` may be in flight. bytes > 0.
void flash_request_set(flash_request & r, uint64_t offset, uint64_t bytes, char * to, const char * tensor);

// Puts the unread pieces of `r` on offer; on a request that is on offer already, adds the higher priority. False where
// the queue has no room, which `most_requests` excludes for demands.
bool flash_reader_start(flash_reader & reader, flash_request & r, flash_priority priority);
// Rings for the lanes; once after a group of starts.
void flash_reader_ring(flash_reader & reader);
// Takes what no lane has begun off offer again.
void flash_request_withdraw(flash_request & r);
// Forgets the queue of a priority once all that was started with it has been withdrawn or done: requests that are
// started and withdrawn again and again would fill it up.
void flash_reader_forget(flash_reader & reader, flash_priority priority);
// Blocks until nothing of `r` is in flight: until it is done, unless it was withdrawn.
void flash_reader_wait(flash_reader & reader, const flash_request & r);

inline bool flash_request_settled(const flash_request & r) { return r.finished.load(std::memory_order_acquire) == r.target; }
// Settled with every piece; check `error`.
inline bool flash_request_done(const flash_request & r) { return r.finished.load(std::memory_order_acquire) == r.pieces; }

// The failure of a settled request.
engine_status flash_request_status(const flash_request & r);
