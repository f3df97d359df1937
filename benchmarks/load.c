/* The load generator: keeps CONNECTIONS of an echo server busy for SECONDS and says what they got done.
 *
 *     load PORT echo CONNECTIONS BYTES SECONDS     messages of BYTES, the next when the last has come back whole
 *     load PORT connect CONNECTIONS BYTES SECONDS  connect, one message, close, connect again
 *     load PORT idle CONNECTIONS 0 0               connects, prints "ready", and waits for the end of its stdin
 *
 * Prints one line: messages, seconds, and the least, median and most messages of a connection. The first fifth of
 * the time is not counted. What comes back is compared with what was sent for messages of up to 4 KiB.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { COMPARED = 4096, SCRATCH = 1 << 20, EVENTS = 256 };

struct connection {
    int fd;
    int waits_for_writing;
    size_t to_send, to_receive;
    uint64_t messages;
};

static int poller, port, reconnects;
static size_t size;
static char *payload, *scratch;
static unsigned next_source;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Connections come from many addresses of the loopback network, so that ports never run out (TIME_WAIT). */
static void open_connection(struct connection *c) {
    struct sockaddr_in source = {.sin_family = AF_INET}, target = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    source.sin_addr.s_addr = htonl(0x7f000001 + next_source++ % 200);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source)) fail("bind");
    target.sin_port = htons(port);
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS) fail("connect");
    c->to_send = c->to_receive = size;
    c->waits_for_writing = 1;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll_ctl");
}

static void wait_for(struct connection *c, int writing) {
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (writing == c->waits_for_writing) return;
    c->waits_for_writing = writing;
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event)) fail("epoll_ctl");
}

static void send_more(struct connection *c) {
    while (c->to_send) {
        ssize_t n = send(c->fd, payload + (size - c->to_send), c->to_send, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) fail("send");
            break;
        }
        c->to_send -= n;
    }
    wait_for(c, c->to_send > 0);
}

static void receive_more(struct connection *c) {
    for (;;) {
        ssize_t n = recv(c->fd, scratch, SCRATCH, 0);
        if (n < 0) {
            if (errno == EAGAIN) return;
            fail("recv");
        }
        if (!n || (size_t)n > c->to_receive) {
            fputs("the server sent too little or too much\n", stderr);
            exit(1);
        }
        if (size <= COMPARED && memcmp(scratch, payload + (size - c->to_receive), n)) {
            fputs("the server sent other bytes\n", stderr);
            exit(1);
        }
        c->to_receive -= n;
        if (c->to_receive) {
            if (n < SCRATCH) return;
            continue;
        }
        c->messages++;
        if (reconnects) {
            close(c->fd);
            open_connection(c);
        } else {
            c->to_send = c->to_receive = size;
            send_more(c);
        }
        return;
    }
}

static void turn(void) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(poller, events, EVENTS, 100);
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (events[i].events & EPOLLOUT) send_more(c);
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) receive_more(c);
    }
}

static int compare(const void *a, const void *b) {
    uint64_t x = ((const struct connection *)a)->messages, y = ((const struct connection *)b)->messages;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    struct rlimit files;
    if (argc != 6) {
        fputs("usage: load PORT echo|connect|idle CONNECTIONS BYTES SECONDS\n", stderr);
        return 2;
    }
    port = atoi(argv[1]);
    int count = atoi(argv[3]), idle = !strcmp(argv[2], "idle");
    reconnects = !strcmp(argv[2], "connect");
    size = strtoull(argv[4], NULL, 10);
    double seconds = atof(argv[5]), start, begin, end;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    payload = malloc(size + 1);
    scratch = malloc(SCRATCH);
    struct connection *connections = calloc(count, sizeof *connections);
    for (size_t i = 0; i < size; i++) payload[i] = (char)(i * 31 + i / 251);
    for (int i = 0; i < count; i++) {
        open_connection(&connections[i]);
        if (i % 64 == 63) usleep(1000); /* so that no backlog overflows */
    }
    if (idle) {
        for (int i = 0; i < count; i++) {
            int error;
            socklen_t length = sizeof error;
            struct pollfd connected = {.fd = connections[i].fd, .events = POLLOUT};
            if (poll(&connected, 1, 10000) != 1) fail("poll");
            if (getsockopt(connections[i].fd, SOL_SOCKET, SO_ERROR, &error, &length) || error) fail("connect");
        }
        puts("ready");
        fflush(stdout);
        while (getchar() != EOF) {
        }
        return 0;
    }
    for (start = now(); now() - start < seconds / 5;) turn();
    for (int i = 0; i < count; i++) connections[i].messages = 0;
    for (begin = now(); (end = now()) - begin < seconds;) turn();
    uint64_t total = 0;
    qsort(connections, count, sizeof *connections, compare);
    for (int i = 0; i < count; i++) total += connections[i].messages;
    printf("%llu %.6f %llu %llu %llu\n", (unsigned long long)total, end - begin,
           (unsigned long long)connections[0].messages, (unsigned long long)connections[count / 2].messages,
           (unsigned long long)connections[count - 1].messages);
    return 0;
}
