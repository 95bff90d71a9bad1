#include "flash-reader.h"

#include "check.h"

#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

static char byte_at(uint64_t i) { return char((i * 2654435761u) >> 13); }

static std::string write_file(const temporary_folder & folder, uint64_t bytes) {
    const std::string path = folder.file("data");
    FILE * f = fopen(path.c_str(), "wb");
    for (uint64_t i = 0; i < bytes; i++) fputc(byte_at(i), f);
    fclose(f);
    return path;
}

static bool holds(const char * data, uint64_t offset, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i++) {
        if (data[i] != byte_at(offset + i)) return false;
    }
    return true;
}

static void start(flash_reader & reader, flash_request & r, flash_priority priority = FLASH_DEMAND) {
    CHECK(flash_reader_start(reader, r, priority));
    flash_reader_ring(reader);
}

static void read(flash_reader & reader, flash_request & r) {
    start(reader, r);
    flash_reader_wait(reader, r);
    CHECK(flash_request_done(r));
}

static void reads_any_alignment(const std::string & path, bool direct, int lanes) {
    flash_request request;
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, direct, lanes, 4));
    const uint64_t offsets[] = {0, 1, 31, 4095, 4096, 4097, 100000, FLASH_SLICE - 7, FLASH_SLICE};
    const uint64_t sizes[] = {1, 32, 4096, 8192, 26112, 78336, FLASH_SLICE + 1, 2500000};
    char * area = nullptr;
    if (posix_memalign(reinterpret_cast<void **>(&area), 4096, 4 << 20) != 0) exit(1);
    for (const uint64_t offset : offsets) {
        for (const uint64_t bytes : sizes) {
            for (const uint64_t shift : {uint64_t(0), offset % 4096, uint64_t(5)}) {
                memset(area, 0x55, 4 << 20);
                flash_request_set(request, offset, bytes, area + 64 + shift, "t");
                CHECK(!flash_request_done(request));
                read(reader, request);
                REQUIRE_OK(flash_request_status(request));
                CHECK(holds(area + 64 + shift, offset, bytes));
                CHECK_EQUAL(area[63 + shift], 0x55);
                CHECK_EQUAL(area[64 + shift + bytes], 0x55);
            }
        }
    }
    // The same in place: congruent address and offset, whole blocks.
    flash_request_set(request, 8192, 16384, area, "t");
    read(reader, request);
    CHECK(holds(area, 8192, 16384));
    CHECK_EQUAL(request.reads.load(), 1);
    CHECK(request.begin_ns.load() > 0);
    CHECK(request.end_ns.load() >= request.begin_ns.load());
    flash_reader_close(reader);
    free(area);
}

// More requests than lanes, waited for in any order, over and over: nothing is lost, nothing is read twice.
static void reads_many_requests_at_once(const std::string & path, flash_priority priority) {
    std::vector<flash_request> requests(300);
    std::vector<char> out(300 * 5000);
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, true, 4, 300));
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 300; i++) {
            flash_request_set(requests[size_t(i)], uint64_t(i) * 7001, 5000, out.data() + i * 5000, "t");
            start(reader, requests[size_t(i)], priority);
        }
        for (int i = 299; i >= 0; i--) flash_reader_wait(reader, requests[size_t(i)]);
        for (int i = 0; i < 300; i++) {
            CHECK(flash_request_done(requests[size_t(i)]));
            CHECK_EQUAL(requests[size_t(i)].finished.load(), requests[size_t(i)].pieces.load());
        }
        CHECK(holds(out.data() + 299 * 5000, 299 * 7001, 5000));
    }
    flash_reader_close(reader);
}

// What was withdrawn is read no further, and can be started again, at either priority, until all of it is there.
static void withdraws_and_resumes(const std::string & path, uint64_t bytes) {
    flash_request request;
    std::vector<char> out(bytes, 0);
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, false, 2, 4));
    flash_request_set(request, 0, bytes, out.data(), "t");
    for (int round = 0; !flash_request_done(request) && round < 10000; round++) {
        start(reader, request, round % 3 == 0 ? FLASH_SPECULATIVE : FLASH_DEMAND);
        if (round % 2 == 0) start(reader, request, FLASH_DEMAND);
        flash_request_withdraw(request);
        for (const flash_priority p : {FLASH_DEMAND, FLASH_SPECULATIVE}) flash_reader_forget(reader, p);
        flash_reader_wait(reader, request);
        CHECK(flash_request_settled(request));
        CHECK_EQUAL(request.finished.load(), request.resume);
        if (round % 50 == 49) {
            start(reader, request);
            flash_reader_wait(reader, request);
        }
    }
    // However often it was interrupted, which is up to the lanes.
    CHECK(flash_request_done(request));
    CHECK(holds(out.data(), 0, bytes));
    flash_reader_close(reader);
}

// A demand does not wait for speculative requests that were there before it.
// Lanes that turn each other away from guesses leave none unread, though the bell rings only once.
static void reads_every_guess_after_one_ring(const std::string & path) {
    std::vector<flash_request> requests(8);
    std::vector<char> out(8 * 5000);
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, false, 8, 8));
    for (int round = 0; round < 3000; round++) {
        for (int i = 0; i < 8; i++) {
            flash_request_set(requests[size_t(i)], uint64_t(i) * 7001, 5000, out.data() + i * 5000, "t");
            CHECK(flash_reader_start(reader, requests[size_t(i)], FLASH_SPECULATIVE));
        }
        flash_reader_ring(reader);
        for (auto & r : requests) flash_reader_wait(reader, r);
    }
    flash_reader_close(reader);
}

// At most the pace, however long the reader was idle before.
static void keeps_its_pace(const std::string & path) {
    const uint64_t bytes = 3 << 20, bytes_per_second = 100 << 20;
    flash_request request;
    std::vector<char> out(bytes);
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, false, 4, 4, bytes_per_second));
    for (int round = 0; round < 3; round++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(40));
        const int64_t start = now_ns();
        flash_request_set(request, 0, bytes, out.data(), "t");
        read(reader, request);
        CHECK(now_ns() - start >= int64_t(double(bytes) / double(bytes_per_second) * 1e9) - 1000);
        CHECK(holds(out.data(), 0, bytes));
    }
    flash_reader_close(reader);
}

static void serves_demands_first(const std::string & path, uint64_t bytes) {
    std::vector<flash_request> guesses(64);
    flash_request demand;
    std::vector<char> out(bytes * 64), wanted(bytes);
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, false, 2, 64));
    for (size_t i = 0; i < guesses.size(); i++) {
        flash_request_set(guesses[i], 0, bytes, out.data() + i * bytes, "t");
        start(reader, guesses[i], FLASH_SPECULATIVE);
    }
    flash_request_set(demand, 0, bytes, wanted.data(), "t");
    start(reader, demand);
    flash_reader_wait(reader, demand);
    int done = 0;
    for (auto & guess : guesses) {
        flash_request_withdraw(guess);
        flash_reader_wait(reader, guess);
        if (flash_request_done(guess)) done++;
    }
    CHECK(holds(wanted.data(), 0, bytes));
    CHECK(done < 64);
    flash_reader_close(reader);
}

static void refuses_what_its_queue_cannot_hold(const std::string & path) {
    std::vector<flash_request> requests(40000);
    std::vector<char> out(4096);
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, false, 1, 2));
    bool refused = false;
    for (auto & r : requests) {
        flash_request_set(r, 0, 4096, out.data(), "t");
        if (flash_reader_start(reader, r, FLASH_SPECULATIVE)) continue;
        refused = true;
        CHECK(flash_request_settled(r));
        break;
    }
    CHECK(refused);
    flash_reader_close(reader);
}

static void names_the_tensor_when_the_file_is_short(const std::string & path, uint64_t bytes, bool direct) {
    flash_request request;
    std::vector<char> out(20000);
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, direct, 2, 4));
    flash_request_set(request, bytes - 5000, 10000, out.data(), "blk.3.ffn_up_exps.weight");
    read(reader, request);
    const engine_status status = flash_request_status(request);
    CHECK_EQUAL(status.code, ENGINE_IO);
    CHECK(strstr(status.message, "blk.3.ffn_up_exps.weight") != nullptr);
    CHECK(strstr(status.message, "ended early") != nullptr);
    // The reader is fine for the next request.
    flash_request_set(request, bytes - 5000, 5000, out.data(), "t");
    read(reader, request);
    REQUIRE_OK(flash_request_status(request));
    CHECK(holds(out.data(), bytes - 5000, 5000));
    flash_reader_close(reader);
}

// Closing with reads under way leaves no lane that writes into memory afterwards.
static void closes_while_reading(const std::string & path, uint64_t bytes) {
    for (int round = 0; round < 20; round++) {
        std::vector<flash_request> requests(16);
        flash_reader reader;
        REQUIRE_OK(flash_reader_open(reader, {path}, false, 3, 16));
        char * area = static_cast<char *>(malloc(bytes));
        for (auto & r : requests) {
            flash_request_set(r, 0, bytes, area, "t");
            start(reader, r, round % 2 ? FLASH_SPECULATIVE : FLASH_DEMAND);
        }
        flash_reader_close(reader);
        free(area);
    }
}

int main() {
    temporary_folder folder;
    const uint64_t bytes = 4 * 1000 * 1000 + 123;
    const std::string path = write_file(folder, bytes);
    reads_any_alignment(path, true, 3);
    reads_any_alignment(path, false, 1);
    reads_many_requests_at_once(path, FLASH_DEMAND);
    reads_many_requests_at_once(path, FLASH_SPECULATIVE);
    withdraws_and_resumes(path, bytes);
    reads_every_guess_after_one_ring(path);
    keeps_its_pace(path);
    serves_demands_first(path, bytes);
    refuses_what_its_queue_cannot_hold(path);
    names_the_tensor_when_the_file_is_short(path, bytes, true);
    names_the_tensor_when_the_file_is_short(path, bytes, false);
    closes_while_reading(path, bytes);
    flash_reader missing;
    CHECK_EQUAL(flash_reader_open(missing, {folder.file("absent")}, true, 1, 4).code, ENGINE_IO);
    flash_reader none;
    CHECK_EQUAL(flash_reader_open(none, {path}, true, 0, 4).code, ENGINE_BAD_ARGUMENT);
    return checks_done();
}
