// What draw.c and draw.py hand to each other, and the colours of textures. draw.py lists the same fields in the same order.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define NEAR 1e-3f  // where dividing by z ends
#define FEW 6  // pixels
enum { LEVELS = 16 };

typedef float Four __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(4)));

typedef struct {
  int32_t corner, corners, face, faces;  // where its own begin, and how many there are
  int32_t place, texture, blended;        // index into the poses; -1: none; whether alpha < 1
  float colour[4], emission, specular, shininess;  // shininess is the exponent
  float middle[3], half[3];                        // box around it, in its own axes
} Shape;

typedef struct {
  uint64_t texels;  // 4 bytes each, level after level, a cube's six sides one after another within a level
  int32_t width, height, levels, sides;
  int32_t starts[LEVELS];  // of the levels, in texels
} Texture;

typedef struct {
  float position[3], direction[3], ambient[3], diffuse[3], specular[3], attenuation[3];
  float cosine, exponent;  // of a spot; cosine -2 stands for a light without a cone
  int32_t directional;
} Light;

typedef struct {
  uint64_t shapes, positions, normals, coordinates, textures, lights;  // addresses
  uint64_t faces, planes;  // corners int32 [F, 3]; outward normal n and offset, n . p = offset: float [4, F]
  uint64_t places, turns;  // double [P, 3] and [P, 9]
  int32_t num_shapes, num_faces, num_lights, sky;  // sky: index of the texture behind everything, or -1
  float ambient;
  int32_t unused;
} Scene;

typedef struct {  // a visible face; v . (x, y, 1) of a row is its value over z at pixel x, y
  float e[3][3];      // shares of the corners
  float shade[3][3];  // colours
  float at[4][3];     // texture coordinates, and 1
  int32_t shape, face, lit;
} Drawn;

typedef struct {
  double position[3], axes[9];  // right, up, forward
  double focal;                 // in pixels
  int32_t width, height, room;  // room: how many Drawn there are
  int32_t unused;
  float nearest, farthest;  // 1/z of what is cut off
  uint64_t inverse, owner, seen, screen, front, lamps, stamps, drawn, frames, near_lights, rgb;  // buffers, sized by draw.py
} View;

typedef struct {
  float m[9], t[3], eye[3];  // shape to view; the camera in the shape's axes
  double turn[9], place[3];
} Frame;

static float dot(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

static float clamp(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }

static float larger_of(float a, float b) { return a > b ? a : b; }

static float smaller_of(float a, float b) { return a < b ? a : b; }

// --- textures ------------------------------------------------------------------------------------------------------

static int larger(int a, int b) { return a > b ? a : b; }

static Four texel(const uint8_t* address) {
  Bytes bytes;
  memcpy(&bytes, address, sizeof bytes);
  return __builtin_convertvector(bytes, Four);
}

// Add `weight` times the colour at x, y (texels of this level) to `out`; a cube's sides end, other textures repeat.
static void bilinear(const Texture* t, int level, int side, float s, float r, float weight, Four* out) {
  int w = larger(t->width >> level, 1), h = larger(t->height >> level, 1), repeat = t->sides == 1;
  const uint8_t* texels = (const uint8_t*)t->texels + 4 * ((size_t)t->starts[level] + (size_t)w * h * side);
  float x = s * (float)w - 0.5f, y = r * (float)h - 0.5f;
  int x0 = (int)(x + 1) - 1, y0 = (int)(y + 1) - 1, x1 = x0 + 1, y1 = y0 + 1;  // -0.5 is the least
  float a = x - (float)x0, b = y - (float)y0;
  if (x0 < 0) x0 = repeat ? w - 1 : 0;
  if (y0 < 0) y0 = repeat ? h - 1 : 0;
  if (x1 >= w) x1 = repeat ? 0 : w - 1;
  if (y1 >= h) y1 = repeat ? 0 : h - 1;
  const uint8_t *p = texels + 4 * (y0 * w + x0), *q = texels + 4 * (y0 * w + x1);
  const uint8_t *u = texels + 4 * (y1 * w + x0), *v = texels + 4 * (y1 * w + x1);
  float d = weight * a * b, c = weight * b - d, g = weight * a - d, f = weight - g - c - d;
  *out += f * texel(p) + g * texel(q) + c * texel(u) + d * texel(v);
}

// Half of the binary logarithm of a number above 1, within 0.005.
static float half_log2(float x) {
  union {
    float f;
    int32_t i;
  } bits = {x};
  int exponent = (bits.i >> 23) - 127;
  bits.i = (bits.i & 0x7fffff) | 0x3f800000;
  return 0.5f * ((float)exponent - 1.6738f + bits.f * (2.0133f - 0.3372f * bits.f));
}

// Colour from 0 to 1; `size` is the square of how many texels of level 0 lie between neighbouring pixels.
static Four sample(const Texture* t, int side, float s, float r, float size) {
  float level = size > 1 ? half_log2(size) : 0, most = (float)(t->levels - 1);
  level = level < 0 ? 0 : level > most ? most : level;
  int lower = (int)level;
  float part = level - (float)lower;
  Four out = {0, 0, 0, 0};
  bilinear(t, lower, side, s, r, (1 - part) / 255, &out);
  if (part > 0 && lower + 1 < t->levels) bilinear(t, lower + 1, side, s, r, part / 255, &out);
  return out;
}

// Colour of a cube in direction d, which changes by dx and dy from pixel to pixel (OpenGL 1.5, table 3.19).
static Four cube(const Texture* t, const float* d, const float* dx, const float* dy) {
  static const struct {
    int s, r, most;
    float sign_s, sign_r;
  } table[6] = {{2, 1, 0, -1, -1}, {2, 1, 0, 1, -1}, {0, 2, 1, 1, 1}, {0, 2, 1, 1, -1}, {0, 1, 2, 1, -1}, {0, 1, 2, -1, -1}};
  float x = fabsf(d[0]), y = fabsf(d[1]), z = fabsf(d[2]);
  int axis = x >= y && x >= z ? 0 : y >= z ? 1 : 2, side = 2 * axis + (d[axis] < 0), i = table[side].s, j = table[side].r;
  float k = 1 / d[axis], s = d[i] * k, r = d[j] * k, scale = 0.5f * (float)t->width * k;
  float sx = dx[i] - s * dx[axis], rx = dx[j] - r * dx[axis], sy = dy[i] - s * dy[axis], ry = dy[j] - r * dy[axis];
  float size = scale * scale * larger_of(sx * sx + rx * rx, sy * sy + ry * ry), turn = d[axis] < 0 ? -1 : 1;
  s = 0.5f + 0.5f * turn * table[side].sign_s * s, r = 0.5f + 0.5f * turn * table[side].sign_r * r;
  return sample(t, side, clamp(s), clamp(r), size);
}
