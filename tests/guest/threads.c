/* What threads on several processors rely on, tried by many of them at once. One line a property, `ok` or what went wrong.
 * Linux, x86-64: cc -static -O2 -pthread threads.c -o threads; threads [THREADS [ROUNDS]] */
#define _GNU_SOURCE
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { PAGE = 4096, MOST = 64 };

static int threads = 4, rounds = 20000, failures;
static pthread_barrier_t start;

/* Milliseconds since the last call. */
static long elapsed(void) {
    static struct timespec before;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long ms = (now.tv_sec - before.tv_sec) * 1000 + (now.tv_nsec - before.tv_nsec) / 1000000;
    before = now;
    return ms;
}

static void result(const char *name, int ok, const char *what) {
    printf("%s: %s (%ld ms)\n", name, ok ? "ok" : what, elapsed());
    failures += !ok;
}

static void *map(int prot) {
    void *at = mmap(NULL, 4 * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) { perror("mmap"); exit(2); }
    return at;
}

struct job { void *(*run)(void *); long number; };

static void *begin(void *argument) {
    struct job *job = argument;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(job->number % sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof set, &set);
    pthread_barrier_wait(&start);
    return job->run((void *)job->number);
}

/* Runs `run(number)` on `count` threads, spread over the processors, and gives how many of them said NULL. */
static int all(int count, void *(*run)(void *)) {
    pthread_t thread[MOST];
    struct job job[MOST];
    int fine = 0;
    pthread_barrier_init(&start, NULL, count);
    for (long i = 0; i < count; i++) {
        job[i] = (struct job){run, i};
        if (pthread_create(&thread[i], NULL, begin, &job[i])) { perror("pthread_create"); exit(2); }
    }
    for (int i = 0; i < count; i++) {
        void *said;
        pthread_join(thread[i], &said);
        fine += !said;
    }
    return fine;
}

/* Atomic updates: aligned, across two cache lines, across two pages. */
static volatile uint32_t *counter;

static void *add(void *number) {
    (void)number;
    int times = (uintptr_t)counter % 64 > 60 ? rounds / 10 : rounds;
    for (int i = 0; i < times; i++)
        switch (i % 4) {
        case 0: __asm__ volatile("lock incl %0" : "+m"(*counter)); break;
        case 1: __asm__ volatile("lock addl $1, %0" : "+m"(*counter)); break;
        case 2: { uint32_t one = 1; __asm__ volatile("lock xaddl %1, %0" : "+m"(*counter), "+r"(one)); break; }
        default: {
            uint32_t was = *counter;
            uint8_t done;
            do __asm__ volatile("lock cmpxchgl %3, %0; sete %1" : "+m"(*counter), "=q"(done), "+a"(was) : "r"(was + 1));
            while (!done);
        }
        }
    return NULL;
}

static void atomics(const char *name, size_t offset) {
    char *memory = map(PROT_READ | PROT_WRITE);
    counter = (void *)(memory + offset);
    all(threads, add);
    uint32_t times = offset % 64 > 60 ? rounds / 10 : rounds;
    result(name, *counter == times * threads, "updates are lost");
    munmap(memory, 4 * PAGE);
}

static volatile uint64_t pair[2] __attribute__((aligned(16)));

static void *add_pair(void *number) {
    (void)number;
    for (int i = 0; i < rounds; i++) {
        uint64_t low = pair[0], high = pair[1];
        uint8_t done;
        do
            __asm__ volatile("lock cmpxchg16b %0; sete %1"
                             : "+m"(pair), "=q"(done), "+a"(low), "+d"(high) : "b"(low + 1), "c"(high + 3) : "memory");
        while (!done);
    }
    return NULL;
}

/* A lock that sleeps, and threads that wake each other. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static long turn, shared_sum;

static void *lock_and_add(void *number) {
    (void)number;
    for (int i = 0; i < rounds; i++) {
        pthread_mutex_lock(&mutex);
        shared_sum++;
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void *take_turns(void *number) {
    for (int i = 0; i < rounds / 20; i++) {
        pthread_mutex_lock(&mutex);
        while (turn % threads != (long)number) pthread_cond_wait(&turned, &mutex);
        turn++;
        pthread_cond_broadcast(&turned);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

/* Stores are seen in order; a store and a load behind MFENCE are not swapped. */
static volatile uint64_t data[64], flag[64];

static void *in_order(void *number) {
    for (uint64_t i = 1; i <= (uint64_t)rounds * 10; i++)
        if (number) {
            uint64_t seen = flag[0];
            __asm__ volatile("" ::: "memory");
            if (data[0] < seen) return "a flag is seen before its data";
        } else {
            data[0] = i;
            __asm__ volatile("" ::: "memory");
            flag[0] = i;
        }
    return NULL;
}

static pthread_barrier_t meet;
static volatile int mine[2][16], saw[2];

static void *fenced(void *number) {
    long me = (long)number;
    for (int i = 0; i < rounds / 20; i++) {
        mine[me][0] = 0;
        pthread_barrier_wait(&meet);
        mine[me][0] = 1;
        _mm_mfence();
        saw[me] = mine[!me][0];
        pthread_barrier_wait(&meet);
        if (!saw[0] && !saw[1]) return "both threads read the value of before";
    }
    return NULL;
}

/* A page whose rights are taken away is not written any more once mprotect has returned. */
static volatile uint64_t *page;
static volatile int over;

static void on_fault(int signal) { (void)signal; sched_yield(); }

static void *write_page(void *number) {
    if (number) {
        while (!over) page[(long)number]++;
        return NULL;
    }
    void *wrong = NULL;
    for (int i = 0; i < rounds / 20 && !wrong; i++) {
        mprotect((void *)page, PAGE, PROT_READ);
        uint64_t before[MOST];
        for (int t = 1; t < threads; t++) before[t] = page[t];
        for (int spin = 0; spin < 200; spin++) __asm__ volatile("" ::: "memory");
        for (int t = 1; t < threads; t++)
            if (page[t] != before[t]) wrong = "a page is written without the right to";
        mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE);
        sched_yield();
    }
    over = 1;
    return wrong;
}

/* A page that is replaced is not read any more once mmap has returned. */
static int pages_of;
static volatile uint64_t epoch;

static void *read_page(void *number) {
    if (number) {
        while (!over) {
            uint64_t now = epoch;
            __asm__ volatile("" ::: "memory");
            if (*page < now) return "a page is read that was replaced";
        }
        return NULL;
    }
    for (uint64_t i = 0; i < (uint64_t)rounds / 20; i++) {
        uint64_t value = i + 1;
        if (pwrite(pages_of, &value, 8, (i % 2) * PAGE) != 8) return "pwrite";
        if (mmap((void *)page, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, pages_of, (i % 2) * PAGE) == MAP_FAILED)
            return "mmap";
        epoch = value;
    }
    over = 1;
    return NULL;
}

/* Code that one thread changes is what another executes, after it has heard of it and serialized. */
static uint8_t *code, *alias;

static void *change_code(void *number) {
    uint32_t (*function)(void) = (void *)(code + (PAGE - 32));
    if (number) {
        while (!over) {
            uint64_t now = epoch;
            unsigned a, b, c, d;
            __cpuid(0, a, b, c, d);
            if (function() < now) return "code is executed that was replaced";
        }
        return NULL;
    }
    for (uint32_t i = 1; i <= (uint32_t)rounds / 4; i++) {
        /* mov eax, imm32 with its immediate aligned, so that the store is atomic. */
        __atomic_store_n((uint32_t *)(alias + (PAGE - 32) + 4), i, __ATOMIC_RELEASE);
        epoch = i;
        for (int spin = 0; spin < (int)(i % 64) * 8; spin++) __asm__ volatile("" ::: "memory");
        if (i % 256 == 0) sched_yield();
    }
    over = 1;
    return NULL;
}

static void modify(const char *name) {
    static const uint8_t body[] = {0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(alias + (PAGE - 32), body, sizeof body);
    over = 0, epoch = 0;
    result(name, all(threads, change_code) == threads, "code is executed that was replaced");
}

/* Time goes forward from one processor to the next. */
static volatile uint64_t latest;

static void *read_time(void *number) {
    (void)number;
    for (int i = 0; i < rounds * 5; i++) {
        uint64_t before = latest;
        __asm__ volatile("" ::: "memory");
        _mm_lfence();
        uint64_t now = __rdtsc();
        _mm_lfence();
        if (now < before) return "the TSC of one processor is behind another's";
        latest = now;
    }
    return NULL;
}

int main(int count, char **arguments) {
    if (count > 1) threads = atoi(arguments[1]);
    if (count > 2) rounds = atoi(arguments[2]);
    if (threads < 2 || threads > MOST || rounds < 20) return fprintf(stderr, "threads [2..%d [20..]]\n", MOST), 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGSEGV, on_fault);
    elapsed();
    atomics("aligned updates", 64);
    atomics("updates across cache lines", 62);
    atomics("updates across pages", PAGE - 2);
    all(threads, add_pair);
    result("updates of 16 bytes", pair[0] == (uint64_t)rounds * threads && pair[1] == 3 * pair[0], "updates are lost");
    all(threads, lock_and_add);
    result("mutex", shared_sum == (long)rounds * threads, "updates are lost");
    all(threads, take_turns);
    result("condition variable", turn == (long)(rounds / 20) * threads, "turns are lost");
    result("order of stores", all(threads, in_order) == threads, "a flag is seen before its data");
    pthread_barrier_init(&meet, NULL, 2);
    result("fences", all(2, fenced) == 2, "both threads read the value of before");
    page = map(PROT_READ | PROT_WRITE);
    over = 0;
    result("rights of pages", all(threads, write_page) == threads, "a page is written without the right to");
    pages_of = memfd_create("pages", 0);
    if (ftruncate(pages_of, 2 * PAGE)) return perror("ftruncate"), 2;
    over = 0, epoch = 0;
    mmap((void *)page, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, pages_of, 0);
    result("replaced pages", all(threads, read_page) == threads, "a page is read that was replaced");
    code = alias = map(PROT_READ | PROT_WRITE | PROT_EXEC);
    modify("changed code");
    int file = memfd_create("code", 0);
    if (ftruncate(file, PAGE)) return perror("ftruncate"), 2;
    code = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    alias = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    modify("code changed through another mapping");
    result("time", all(threads, read_time) == threads, "the TSC of one processor is behind another's");
    printf("%d failures\n", failures);
    return failures != 0;
}
