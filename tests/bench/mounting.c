/* The loops that measure a mount and a local file system. Each prints its duration in seconds.
 *
 *   loop read FILE                    read the whole file, 1 MiB at a time
 *   loop files ROOT COUNT ROUNDS      open, read and close the files ROOT/dNNN/fNN, 100 in each directory
 *   loop stat ROOT COUNT ROUNDS       stat the same files
 *   loop absent ROOT COUNT ROUNDS     stat missing names in the same directories
 *   loop spawn TIMES PROGRAM [ARG]... run a program and wait for it
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static char buffer[1 << 20];

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void read_all(const char *path) {
    int fd = open(path, O_RDONLY);
    ssize_t size;
    if (fd < 0) fail(path);
    while ((size = read(fd, buffer, sizeof buffer)) > 0) {}
    if (size < 0) fail(path);
    close(fd);
}

static void walk(const char *mode, const char *root, int count, int rounds) {
    char path[4096];
    struct stat status;
    for (int round = 0; round < rounds; round++)
        for (int number = 0; number < count; number++) {
            snprintf(path, sizeof path, "%s/d%03d/%s%02d", root, number / 100, *mode == 'a' ? "none" : "f", number % 100);
            if (*mode == 'f') read_all(path);
            else if (*mode == 's' && stat(path, &status)) fail(path);
            else if (*mode == 'a' && (!stat(path, &status) || errno != ENOENT)) fail(path);
        }
}

static void spawn(int times, char **command) {
    for (int time = 0; time < times; time++) {
        pid_t pid;
        int status;
        if ((errno = posix_spawn(&pid, command[0], NULL, NULL, command, environ))) fail(command[0]);
        if (waitpid(pid, &status, 0) < 0 || status) fail(command[0]);
    }
}

int main(int argc, char **argv) {
    struct timespec start, stop;
    if (argc < 3) return 2;
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (!strcmp(argv[1], "read")) read_all(argv[2]);
    else if (!strcmp(argv[1], "spawn")) spawn(atoi(argv[2]), argv + 3);
    else if (argc == 5) walk(argv[1], argv[2], atoi(argv[3]), atoi(argv[4]));
    else return 2;
    clock_gettime(CLOCK_MONOTONIC, &stop);
    printf("%.9f\n", (double)(stop.tv_sec - start.tv_sec) + (double)(stop.tv_nsec - start.tv_nsec) / 1e9);
    return 0;
}
