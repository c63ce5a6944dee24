#!/bin/sh
# A bundle's C as a library of the Arduino IDE: sh library.sh BUNDLE/native FOLDER
#
# The IDE gives a library no flags of its own. So the plain form is chosen in the headers, the weights
# become an array, and gcc is told in the source to round a product before it is added to.
set -eu
from=$1 to=$2
mkdir -p "$to/src"
cp "$from"/*.c "$from"/*.h "$from"/*.hpp "$to/src"
rm "$to/src/python.c"
for header in stategate.h stategate_math.h; do
    { echo '#ifndef STATEGATE_PORTABLE'
      echo '#define STATEGATE_PORTABLE 1'
      echo '#endif'
      echo '#if defined(__GNUC__) && !defined(__clang__)'
      echo '#pragma GCC optimize("fp-contract=off", "no-trapping-math", "no-math-errno", "wrapv")'
      echo '#endif'
      cat "$from/$header"; } > "$to/src/$header"
done
{ echo '#include <stdint.h>'
  echo 'extern const uint64_t stategate_weight_words[];'
  echo 'const uint64_t stategate_weight_words[] = {'
  od -An -v -t x8 "$from/weights.bin" | sed 's/ *\([0-9a-f]\{1,\}\)/0x\1u,/g'
  echo '0u};'; } > "$to/src/weights.c"
cat > "$to/library.properties" <<'END'
name=StategatePolicy
version=1.0.0
author=whoever made the bundle
maintainer=whoever made the bundle
sentence=One step of a model with a memory of constant size.
paragraph=Made of a bundle of stategate.
category=Data Processing
url=https://example.org
architectures=*
includes=stategate.hpp
END
