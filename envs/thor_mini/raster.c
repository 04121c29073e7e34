// Pictures of a house: convex faces in groups, a z-buffer of 1/z, and one shading pass over what was left visible.
//
// Compiled and loaded by render.py, whose SCENE, GROUP, FACE and VIEW list the same fields in the same order. Axes are
// AI2-THOR's: x right, y up, z forward. Setting up faces is done in double precision, so that faces that share an edge
// leave no cracks; depth is exact for a plane, because 1/z is linear on the screen and comes from the plane itself.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CORNERS = 8, TEXELS = 128, LEVELS = 8, MIDDLE = 160 };
#define NEAR 0.02
#define FAR 100.0f
#define LEAST_PIXELS 0.4  // groups that are smaller on the screen are left out

typedef struct {
  int32_t start, count;  // of its faces
  int32_t id, occluder;  // index into Scene.bodies or -1; whether it is drawn first and never tested against others
  double radius;         // around the group's origin
} Group;

typedef struct {
  int32_t start, count, pattern, both;  // corners; texture, or -1; whether its back is seen too
  double normal[3], offset;             // n . p = offset in the group's frame
  double u[3], v[3], u0, v0;            // texture coordinates, in repetitions
  uint8_t colour[4], back[4];
} Face;

typedef struct {
  uint64_t groups, faces, corners, textures, poses, hidden;  // addresses
  int32_t num_groups, num_faces;
  uint8_t sky[4], ground[4];
} Scene;

typedef struct {
  double position[3], right[3], up[3], forward[3], focal;  // focal length in pixels
  int32_t width, height;
  uint64_t inverse, owner, drawn, order;  // buffers: float [Y, X], int32 [Y, X], Drawn [num_faces], Near [num_groups]
  uint64_t rgb, depth, ids;               // the picture
} View;

typedef struct {  // a face as this view sees it: texture coordinate = at + z * (step . (x, y, 1))
  float u_at, u_x, u_y, u_1, v_at, v_x, v_y, v_1, blur;
  float colour[3];
  const uint8_t* texture;
  int32_t id, unused;
} Drawn;

typedef struct {
  float distance;
  int32_t group;
} Near;

typedef struct {
  double m[9], origin[3], eye[3];  // group frame to view; its origin in the view; the camera in the group's frame
  double sine, cosine;
} Frame;

void raster_sizes(int32_t* sizes) {
  sizes[0] = sizeof(Scene), sizes[1] = sizeof(Group), sizes[2] = sizeof(Face), sizes[3] = sizeof(View);
  sizes[4] = sizeof(Drawn), sizes[5] = sizeof(Near);
}

static double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// --- one convex polygon --------------------------------------------------------------------------------------------

// Keep what lies in front of the camera. Returns the number of corners written to `out`.
static int clip_near(const double (*in)[3], int n, double (*out)[3]) {
  int kept = 0;
  for (int i = 0; i < n; i++) {
    const double *a = in[i], *b = in[(i + 1) % n];
    if (a[2] >= NEAR) memcpy(out[kept++], a, sizeof *out);
    if ((a[2] >= NEAR) != (b[2] >= NEAR)) {
      const double *p = a[2] < b[2] ? a : b, *q = a[2] < b[2] ? b : a;  // the same point from both sides
      double t = (NEAR - p[2]) / (q[2] - p[2]);
      for (int k = 0; k < 3; k++) out[kept][k] = p[k] + t * (q[k] - p[k]);
      out[kept++][2] = NEAR;
    }
  }
  return kept;
}

// First pixel whose centre is at or right of x (or below y), within 0 and n.
static int first_pixel(double x, int n) { return x <= 0.5 ? 0 : x >= n + 0.5 ? n : (int)ceil(x - 0.5); }

// Fill a polygon given on the screen, where 1/z = plane . (x, y, 1), with `face`.
static int fill(const View* view, const double (*p)[2], int n, const double* plane, int32_t face) {
  int width = view->width, height = view->height, drawn = 0;
  double top = p[0][1], bottom = p[0][1];
  for (int i = 1; i < n; i++) top = fmin(top, p[i][1]), bottom = fmax(bottom, p[i][1]);
  int first = first_pixel(top, height), last = first_pixel(bottom, height);
  if (first >= last) return 0;
  int32_t left[4096], right[4096];
  for (int y = first; y < last; y++) left[y] = width, right[y] = 0;
  for (int i = 0; i < n; i++) {
    const double *a = p[i], *b = p[(i + 1) % n];
    const double *s = a[1] < b[1] ? a : b, *e = a[1] < b[1] ? b : a;  // downwards, whoever owns the edge
    int from = first_pixel(s[1], height), to = first_pixel(e[1], height);
    if (from >= to) continue;
    double slope = (e[0] - s[0]) / (e[1] - s[1]);
    for (int y = from; y < to; y++) {
      int x = first_pixel(s[0] + slope * (y + 0.5 - s[1]), width);
      if (x < left[y]) left[y] = x;
      if (x > right[y]) right[y] = x;
    }
  }
  float* inverse = (float*)view->inverse;
  int32_t* owner = (int32_t*)view->owner;
  float step = (float)plane[0];
  for (int y = first; y < last; y++) {
    if (left[y] >= right[y]) continue;
    float start = (float)(plane[1] * (y + 0.5) + plane[2] + plane[0] * (left[y] + 0.5));
    float* z = inverse + (size_t)y * width + left[y];
    int32_t* o = owner + (size_t)y * width + left[y];
    int count = right[y] - left[y];
    for (int x = 0; x < count; x++) {
      float here = start + step * (float)x;
      int nearer = here > z[x];
      z[x] = nearer ? here : z[x];
      o[x] = nearer ? face : o[x];
    }
    drawn += count;
  }
  return drawn;
}

// --- groups --------------------------------------------------------------------------------------------------------

static void to_view(const View* view, const double* p, double* out) {
  double d[3] = {p[0] - view->position[0], p[1] - view->position[1], p[2] - view->position[2]};
  out[0] = dot(view->right, d), out[1] = dot(view->up, d), out[2] = dot(view->forward, d);
}

// A yaw turns z towards x: the group's x axis is (cos, 0, -sin) in the world.
static void place(const View* view, const double* pose, Frame* f) {
  const double* axes[3] = {view->right, view->up, view->forward};
  double s = sin(pose[3]), c = cos(pose[3]);
  for (int i = 0; i < 3; i++) {
    f->m[3 * i] = c * axes[i][0] - s * axes[i][2];
    f->m[3 * i + 1] = axes[i][1];
    f->m[3 * i + 2] = s * axes[i][0] + c * axes[i][2];
  }
  double d[3];
  for (int i = 0; i < 3; i++) d[i] = view->position[i] - pose[i];
  f->eye[0] = c * d[0] - s * d[2], f->eye[1] = d[1], f->eye[2] = s * d[0] + c * d[2];
  f->sine = s, f->cosine = c;
}

// Whether a sphere may be on the screen, with its rectangle of pixels: x0, y0, x1, y1.
static int on_screen(const View* view, const double* c, double r, int* rect) {
  if (c[2] + r < NEAR || r * view->focal < LEAST_PIXELS * c[2]) return 0;
  rect[0] = rect[1] = 0, rect[2] = view->width, rect[3] = view->height;
  double near = c[2] - r, far = c[2] + r;
  if (near < NEAR) {  // around the camera: only the planes of the view's pyramid can tell
    double w = 0.5 * view->width, h = 0.5 * view->height, f = view->focal;
    return fabs(c[0]) * f - c[2] * w <= r * hypot(f, w) && fabs(c[1]) * f - c[2] * h <= r * hypot(f, h);
  }
  double cx = 0.5 * view->width, cy = 0.5 * view->height, f = view->focal;
  double l = c[0] - r, t = c[0] + r, b = -c[1] - r, u = -c[1] + r;
  rect[0] = first_pixel(cx + f * l / (l < 0 ? near : far), view->width);
  rect[2] = first_pixel(cx + f * t / (t < 0 ? far : near) + 1, view->width);
  rect[1] = first_pixel(cy + f * b / (b < 0 ? near : far), view->height);
  rect[3] = first_pixel(cy + f * u / (u < 0 ? far : near) + 1, view->height);
  return rect[0] < rect[2] && rect[1] < rect[3];
}

// Whether all pixels of the rectangle already show something nearer than z.
static int covered(const View* view, const int* rect, double z) {
  if (z < NEAR) return 0;
  float least = (float)(1 / z);
  for (int y = rect[1]; y < rect[3]; y++) {
    const float* row = (const float*)view->inverse + (size_t)y * view->width;
    int open = 0;
    for (int x = rect[0]; x < rect[2]; x++) open |= row[x] < least;
    if (open) return 0;
  }
  return 1;
}

// Brightness of a face by where it looks, in the world: up 1, sideways a little less by side, down least.
static float light(double x, double y, double z) {
  return (float)(0.80 + (y > 0 ? 0.20 * y : 0.10 * y) + 0.075 * x + 0.045 * z);
}

static void prepare(const View* view, const Frame* f, const Face* face, const uint8_t* textures, int backwards,
                    double distance, int32_t id, Drawn* d) {
  const double* n = face->normal;
  double sign = backwards ? -1 : 1, k = 1 / view->focal;
  float bright = light(sign * (f->cosine * n[0] + f->sine * n[2]), sign * n[1], sign * (f->cosine * n[2] - f->sine * n[0]));
  const uint8_t* colour = backwards ? face->back : face->colour;
  for (int i = 0; i < 3; i++) d->colour[i] = bright * colour[i] * (face->pattern < 0 ? 1.0f : 1.0f / MIDDLE);
  d->id = id, d->texture = 0;
  if (face->pattern < 0) return;
  double u[3], v[3], cx = 0.5 * view->width, cy = 0.5 * view->height;
  for (int i = 0; i < 3; i++) u[i] = TEXELS * dot(f->m + 3 * i, face->u), v[i] = TEXELS * dot(f->m + 3 * i, face->v);
  double shift = 1 << 17;  // whole repetitions, to stay positive
  d->u_at = (float)(TEXELS * (dot(face->u, f->eye) + face->u0) + shift), d->u_x = (float)(u[0] * k), d->u_y = (float)(-u[1] * k);
  d->v_at = (float)(TEXELS * (dot(face->v, f->eye) + face->v0) + shift), d->v_x = (float)(v[0] * k), d->v_y = (float)(-v[1] * k);
  d->u_1 = (float)(u[2] + (0.5 - cx) * u[0] * k - (0.5 - cy) * u[1] * k);
  d->v_1 = (float)(v[2] + (0.5 - cx) * v[0] * k - (0.5 - cy) * v[1] * k);
  // A pixel covers z / focal across and z^2 / (focal distance) along the slope; the level follows their mean.
  d->blur = (float)(TEXELS * TEXELS * dot(face->u, face->u) * k * k / fmax(distance, 0.05));
  size_t texels = 0;
  for (int i = 0; i < LEVELS; i++) texels += (size_t)(TEXELS >> i) * (TEXELS >> i);
  d->texture = textures + face->pattern * texels;
}

static int draw_group(const Scene* scene, const View* view, int index, const double* origin, int drawn) {
  const Group* group = (const Group*)scene->groups + index;
  const double* pose = (const double*)scene->poses + 4 * index;
  const double(*corners)[3] = (const double(*)[3])scene->corners;
  Drawn* list = (Drawn*)view->drawn;
  Frame f;
  place(view, pose, &f);
  for (int i = group->start; i < group->start + group->count; i++) {
    const Face* face = (const Face*)scene->faces + i;
    double distance = dot(face->normal, f.eye) - face->offset;
    int backwards = distance < 0;
    if ((backwards && !face->both) || fabs(distance) < 1e-9) continue;
    double view_corners[CORNERS][3], clipped[CORNERS + 2][3], screen[CORNERS + 2][2], n[3];
    int near = 0, n_corners = face->count;
    for (int c = 0; c < n_corners; c++) {
      const double* p = corners[face->start + c];
      for (int k = 0; k < 3; k++) view_corners[c][k] = origin[k] + dot(f.m + 3 * k, p);
      near |= view_corners[c][2] < NEAR;
    }
    const double(*shown)[3] = (const double(*)[3])view_corners;
    if (near) {
      n_corners = clip_near(shown, n_corners, clipped);
      shown = (const double(*)[3])clipped;
    }
    if (n_corners < 3) continue;
    double cx = 0.5 * view->width, cy = 0.5 * view->height, x0 = 1e30, x1 = -1e30;
    for (int c = 0; c < n_corners; c++) {
      screen[c][0] = cx + view->focal * shown[c][0] / shown[c][2];
      screen[c][1] = cy - view->focal * shown[c][1] / shown[c][2];
      x0 = fmin(x0, screen[c][0]), x1 = fmax(x1, screen[c][0]);
    }
    if (x1 <= 0.5 || x0 >= view->width) continue;
    for (int k = 0; k < 3; k++) n[k] = dot(f.m + 3 * k, face->normal) / -distance;
    double plane[3] = {n[0] / view->focal, -n[1] / view->focal, 0};
    plane[2] = n[2] - cx * plane[0] - cy * plane[1];
    if (!fill(view, (const double(*)[2])screen, n_corners, plane, drawn)) continue;
    prepare(view, &f, face, (const uint8_t*)scene->textures, backwards, fabs(distance), group->id, list + drawn);
    drawn++;
  }
  return drawn;
}

// --- shading -------------------------------------------------------------------------------------------------------

static uint8_t to_byte(float x) { return x > 255.0f ? 255 : (uint8_t)x; }

static float fading(float inverse) {  // near things are brighter, as if the camera carried a lamp
  float b = 0.70f + 0.42f * inverse;
  return b > 1.08f ? 1.08f : b;
}

static void shade_sky(const Scene* scene, const View* view, int y, int from, int to) {
  double cx = 0.5 * view->width, cy = 0.5 * view->height;
  size_t row = (size_t)y * view->width;
  for (int x = from; x < to; x++) {
    double a = (x + 0.5 - cx) / view->focal, b = -(y + 0.5 - cy) / view->focal;
    double rise = (view->right[1] * a + view->up[1] * b + view->forward[1]) / sqrt(a * a + b * b + 1);
    double t = fmin(1, 0.35 + fabs(rise) * 2);
    const uint8_t* colour = rise > 0 ? scene->sky : scene->ground;
    for (int k = 0; k < 3; k++) ((uint8_t*)view->rgb)[3 * (row + x) + k] = (uint8_t)(236 + t * (colour[k] - 236));
    ((float*)view->depth)[row + x] = FAR;
    ((int32_t*)view->ids)[row + x] = -1;
  }
}

static void shade_run(const View* view, const Drawn* d, int y, int from, int to) {
  size_t row = (size_t)y * view->width;
  const float* inverse = (const float*)view->inverse + row;
  float* depth = (float*)view->depth + row;
  int32_t* ids = (int32_t*)view->ids + row;
  uint8_t* rgb = (uint8_t*)view->rgb + 3 * row;
  for (int x = from; x < to; x++) depth[x] = 1.0f / inverse[x], ids[x] = d->id;
  if (!d->texture) {
    for (int x = from; x < to; x++) {
      float b = fading(inverse[x]);
      for (int k = 0; k < 3; k++) rgb[3 * x + k] = to_byte(b * d->colour[k]);
    }
    return;
  }
  static const int32_t offsets[LEVELS] = {0, 16384, 20480, 21504, 21760, 21824, 21840, 21844};
  float u_1 = d->u_1 + d->u_y * (float)y, v_1 = d->v_1 + d->v_y * (float)y;
  for (int x = from; x < to; x++) {
    float z = depth[x];
    uint32_t u = (uint32_t)(d->u_at + z * (u_1 + d->u_x * (float)x)), v = (uint32_t)(d->v_at + z * (v_1 + d->v_x * (float)x));
    union {
      float f;
      int32_t i;
    } size = {d->blur * z * z * z};
    int level = ((size.i >> 23) - 125) >> 1;  // half of the exponent: size is the square of a length
    level = level < 0 ? 0 : level > LEVELS - 1 ? LEVELS - 1 : level;
    uint32_t mask = (TEXELS >> level) - 1;
    const uint8_t* texel = d->texture + offsets[level];
    float b = fading(inverse[x]) * texel[(((v >> level) & mask) << (7 - level)) + ((u >> level) & mask)];
    for (int k = 0; k < 3; k++) rgb[3 * x + k] = to_byte(b * d->colour[k]);
  }
}

// --- the picture ---------------------------------------------------------------------------------------------------

static int by_distance(const void* a, const void* b) {
  float x = ((const Near*)a)->distance, y = ((const Near*)b)->distance;
  return x < y ? -1 : x > y;
}

// Draw the view into its picture. Returns how many faces were looked at after culling, or -1 for a size too large.
int32_t raster_draw(const Scene* scene, const View* view) {
  int pixels = view->width * view->height, drawn = 0, count = 0;
  if (view->height > 4096) return -1;
  memset((void*)view->inverse, 0, pixels * sizeof(float));
  memset((void*)view->owner, 0xff, pixels * sizeof(int32_t));
  const Group* groups = (const Group*)scene->groups;
  Near* order = (Near*)view->order;
  for (int i = 0; i < scene->num_groups; i++) {
    double c[3];
    int rect[4];
    if (((const uint8_t*)scene->hidden)[i]) continue;
    to_view(view, (const double*)scene->poses + 4 * i, c);
    if (!on_screen(view, c, groups[i].radius, rect)) continue;
    order[count].distance = groups[i].occluder ? (float)(c[2] - 1e4) : (float)(c[2] - groups[i].radius);
    order[count++].group = i;
  }
  qsort(order, count, sizeof(Near), by_distance);  // walls first, then from near to far, so that much is covered early
  for (int i = 0; i < count; i++) {
    double c[3];
    int rect[4], g = order[i].group;
    to_view(view, (const double*)scene->poses + 4 * g, c);
    on_screen(view, c, groups[g].radius, rect);
    if (covered(view, rect, c[2] - groups[g].radius)) continue;
    drawn = draw_group(scene, view, g, c, drawn);
  }
  const int32_t* owner = (const int32_t*)view->owner;
  for (int y = 0; y < view->height; y++) {
    const int32_t* row = owner + (size_t)y * view->width;
    for (int x = 0, end; x < view->width; x = end) {
      for (end = x + 1; end < view->width && row[end] == row[x];) end++;
      if (row[x] < 0) shade_sky(scene, view, y, x, end);
      else shade_run(view, (const Drawn*)view->drawn + row[x], y, x, end);
    }
  }
  return drawn;
}
