// How evenly Counter hands out the phases of a step to many threads, each virtual thread taking its
// next part when it has done the last. A line of standard input is "threads", then "units least length"
// of each phase; printed is the share of all threads' time that is work.
// tests/unit/test_native_shares.py builds it.
#include <cstdio>
#include <iostream>
#include <queue>
#include <sstream>
#include <string>

#include "threads.hpp"

using smollm3::Counter;

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        int threads, units, least;
        double length, work = 0, time = 0;
        words >> threads;
        while (words >> units >> least >> length) {
            Counter counter;
            std::priority_queue<long, std::vector<long>, std::greater<long>> free;  // when each thread is
            for (int i = 0; i < threads; i++) free.push(0);
            long last = 0;
            std::vector<bool> done(units);
            for (auto p = counter.take(units, least, threads); p.begin < p.end; p = counter.take(units, least, threads)) {
                for (int i = p.begin; i < p.end; i++) {
                    if (done[i]) return 1;  // handed out twice
                    done[i] = true;
                }
                const long end = free.top() + (p.end - p.begin);
                free.pop();
                free.push(end);
                last = end > last ? end : last;
            }
            for (bool d : done)
                if (!d) return 2;
            work += units * length;
            time += double(last) * length * threads;
        }
        printf("%.4f\n", work / time);
    }
}
