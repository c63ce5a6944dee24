/* The other half of the stand-in: a computer that calls setup once and loop a hundred times. */
#include <cstdio>

#include "Arduino.h"

void setup();
void loop();

SerialStandIn Serial;

void SerialStandIn::begin(unsigned long) {}
void SerialStandIn::println(const char *text) { std::puts(text); }
void SerialStandIn::println(double number, int digits) { std::printf("%.*f\n", digits, number); }

/* A sensor whose readings a test can say in advance. */
int analogRead(int)
{
    static unsigned count = 0;
    return static_cast<int>(count++ * 7919u % 1024u);
}

void delay(unsigned long) {}

int main()
{
    setup();
    for (int turn = 0; turn < 100; ++turn) {
        loop();
    }
    return 0;
}
