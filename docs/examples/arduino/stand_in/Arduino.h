/* A stand-in for the Arduino core, written for this example so that it compiles and runs on a computer.
 * It is not Arduino's: it has what sketch.ino calls and no more. */
#ifndef ARDUINO_STAND_IN_H
#define ARDUINO_STAND_IN_H

enum { A0 = 14 };

int analogRead(int pin);
void delay(unsigned long milliseconds);

struct SerialStandIn {
    void begin(unsigned long baud);
    void println(const char *text);
    void println(double number, int digits);
};

extern SerialStandIn Serial;

#endif
