// CALVIN's pictures in one pass over triangles and one over pixels: a z-buffer of 1/z that remembers which triangle is
// in front, then the colour of each pixel from that triangle. The lighting is that of PyBullet's software renderer.
//
// Compiled and loaded by fast.py, whose MESH, BODY and VIEW list the same fields in the same order. A camera looks along
// its own -z. Corners are projected in double precision, so that triangles that share an edge leave no cracks.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_X 0.0  // where PyBullet looks at a pixel: at its lower left corner
#define SAMPLE_Y 1.0
#define AMBIENT 0.6f
#define DIFFUSE 0.35f
#define SHINE 0.05f  // times the square of how far the reflected light goes up

typedef struct {  // arrays of a mesh, in its body's frame
  uint64_t points, normals, texture_points, corners;  // double [P, 3]; float [M, 3]; float [U, 2]; int32 [F, 3, 3]
  uint64_t texture;                                   // uint8 [Y, X, 3], row 0 on top, or 0
  int32_t num_points, num_triangles, height, width;
  double centre[3], radius;
} Mesh;

typedef struct {
  double turn[9], place[3];  // body to world
  float colour[3];
  int32_t mesh;
} Body;

typedef struct {
  double turn[9], place[3];        // world to camera
  double focal_x, focal_y, near, far;  // focal lengths in pixels
  int32_t height, width, num_bodies, unused;
  float light[3], background[3];   // towards the light, of length 1
  uint64_t bodies, meshes;
  uint64_t seen, inverse, owner;   // buffers: double [most points, 6]; float [Y, X]; int32 [Y, X, 2]
  uint64_t rgb, depth;             // the picture: uint8 [Y, X, 3], float [Y, X] in metres along the view
} View;

void raster_sizes(int32_t* sizes) { sizes[0] = sizeof(Mesh), sizes[1] = sizeof(Body), sizes[2] = sizeof(View); }

static double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

static void cross(const double* a, const double* b, double* out) {
  out[0] = a[1] * b[2] - a[2] * b[1], out[1] = a[2] * b[0] - a[0] * b[2], out[2] = a[0] * b[1] - a[1] * b[0];
}

// Body frame to camera frame.
static void combine(const View* view, const Body* body, double* turn, double* place) {
  for (int i = 0; i < 3; i++) {
    for (int j = 0; j < 3; j++) {
      turn[3 * i + j] = 0;
      for (int k = 0; k < 3; k++) turn[3 * i + j] += view->turn[3 * i + k] * body->turn[3 * k + j];
    }
    place[i] = dot(view->turn + 3 * i, body->place) + view->place[i];
  }
}

typedef struct {
  double x, y, inverse;  // on the screen, in pixels; 1 / distance along the view
} Corner;

static void project(const View* view, const double* p, Corner* out) {
  out->inverse = -1 / p[2];
  out->x = 0.5 * view->width + view->focal_x * p[0] * out->inverse;
  out->y = 0.5 * view->height - view->focal_y * p[1] * out->inverse;
}

// --- triangles -----------------------------------------------------------------------------------------------------

// Pixels whose centre is inside, edges included. `owner` is what each of them then belongs to.
static void fill(const View* view, const Corner* a, const Corner* b, const Corner* c, int32_t body, int32_t triangle) {
  double left = fmin(a->x, fmin(b->x, c->x)), right = fmax(a->x, fmax(b->x, c->x));
  double top = fmin(a->y, fmin(b->y, c->y)), bottom = fmax(a->y, fmax(b->y, c->y));
  if (!(right >= 0 && bottom >= 0 && left <= view->width && top <= view->height)) return;
  int x0 = left <= SAMPLE_X ? 0 : (int)ceil(left - SAMPLE_X), y0 = top <= SAMPLE_Y ? 0 : (int)ceil(top - SAMPLE_Y);
  int x1 = right >= view->width ? view->width - 1 : (int)floor(right - SAMPLE_X);
  int y1 = bottom >= view->height ? view->height - 1 : (int)floor(bottom - SAMPLE_Y);
  if (x0 > x1 || y0 > y1) return;
  double area = (b->x - a->x) * (c->y - a->y) - (b->y - a->y) * (c->x - a->x);
  if (area == 0) return;
  double k = 1 / area;  // weights of b and c: linear in the pixel
  double bx = k * (c->y - a->y), by = -k * (c->x - a->x), cx = -k * (b->y - a->y), cy = k * (b->x - a->x);
  double b_side = b->inverse - a->inverse, c_side = c->inverse - a->inverse;
  double slope = bx * b_side + cx * c_side;
  for (int y = y0; y <= y1; y++) {
    double dx = x0 + SAMPLE_X - a->x, dy = y + SAMPLE_Y - a->y;
    double wb = bx * dx + by * dy, wc = cx * dx + cy * dy, z = a->inverse + wb * b_side + wc * c_side;
    float* inverse = (float*)view->inverse + (size_t)y * view->width;
    int32_t* owner = (int32_t*)view->owner + 2 * (size_t)y * view->width;
    for (int x = x0; x <= x1; x++, wb += bx, wc += cx, z += slope) {
      if (wb < -1e-9 || wc < -1e-9 || wb + wc > 1 + 1e-9 || (float)z <= inverse[x]) continue;
      inverse[x] = (float)z, owner[2 * x] = body, owner[2 * x + 1] = triangle;
    }
  }
}

// A triangle that reaches behind the camera: the part in front of it, as a fan.
static void fill_clipped(const View* view, const double* const* p, int32_t body, int32_t triangle) {
  Corner out[4];
  int n = 0;
  for (int i = 0; i < 3; i++) {
    const double *a = p[i], *b = p[(i + 1) % 3];
    int a_in = -a[2] >= view->near, b_in = -b[2] >= view->near;
    if (a_in) project(view, a, out + n++);
    if (a_in != b_in) {
      double t = (-view->near - a[2]) / (b[2] - a[2]), q[3];
      for (int k = 0; k < 3; k++) q[k] = a[k] + t * (b[k] - a[k]);
      q[2] = -view->near;
      project(view, q, out + n++);
    }
  }
  for (int i = 1; i + 1 < n; i++) fill(view, out, out + i, out + i + 1, body, triangle);
}

static int off_screen(const View* view, const double* centre, double radius) {
  double w = 0.5 * view->width, h = 0.5 * view->height, away = -centre[2];
  return away + radius < view->near ||
         fabs(centre[0]) * view->focal_x - away * w > radius * hypot(view->focal_x, w) ||
         fabs(centre[1]) * view->focal_y - away * h > radius * hypot(view->focal_y, h);
}

static void draw(const View* view, int32_t index) {
  const Body* body = (const Body*)view->bodies + index;
  const Mesh* mesh = (const Mesh*)view->meshes + body->mesh;
  double turn[9], place[3], centre[3];
  combine(view, body, turn, place);
  for (int i = 0; i < 3; i++) centre[i] = dot(turn + 3 * i, mesh->centre) + place[i];
  if (off_screen(view, centre, mesh->radius)) return;
  double(*seen)[6] = (double(*)[6])view->seen;
  const double(*points)[3] = (const double(*)[3])mesh->points;
  for (int i = 0; i < mesh->num_points; i++) {
    for (int k = 0; k < 3; k++) seen[i][k] = dot(turn + 3 * k, points[i]) + place[k];
    if (-seen[i][2] >= view->near) project(view, seen[i], (Corner*)(seen[i] + 3));
  }
  const int32_t(*corners)[9] = (const int32_t(*)[9])mesh->corners;
  for (int i = 0; i < mesh->num_triangles; i++) {
    const double* p[3];
    int inside = 0;
    for (int k = 0; k < 3; k++) p[k] = seen[corners[i][3 * k]], inside += -p[k][2] >= view->near;
    if (!inside) continue;
    if (inside < 3) {
      double sides[2][3], normal[3];
      for (int k = 0; k < 3; k++) sides[0][k] = p[1][k] - p[0][k], sides[1][k] = p[2][k] - p[0][k];
      cross(sides[0], sides[1], normal);
      if (dot(normal, p[0]) < 0) fill_clipped(view, p, index, i);
      continue;
    }
    const Corner *a = (const Corner*)(p[0] + 3), *b = (const Corner*)(p[1] + 3), *c = (const Corner*)(p[2] + 3);
    if ((b->x - a->x) * (c->y - a->y) < (b->y - a->y) * (c->x - a->x)) fill(view, a, b, c, index, i);  // not its back
  }
}

// --- pixels --------------------------------------------------------------------------------------------------------

typedef struct {  // a triangle for shading: weights of its corners along a ray, what its corners carry
  double weights[3][3];
  float u[3], v[3], normal[3][3];
  const Mesh* mesh;
  const Body* body;
} Facet;

static void look_up(const View* view, int32_t index, int32_t triangle, Facet* f) {
  f->body = (const Body*)view->bodies + index;
  f->mesh = (const Mesh*)view->meshes + f->body->mesh;
  const int32_t* c = (const int32_t*)f->mesh->corners + 9 * (size_t)triangle;
  double turn[9], place[3], p[3][3];
  combine(view, f->body, turn, place);
  for (int k = 0; k < 3; k++) {
    const double* point = (const double*)f->mesh->points + 3 * (size_t)c[3 * k];
    for (int i = 0; i < 3; i++) p[k][i] = dot(turn + 3 * i, point) + place[i];
    const float* t = (const float*)f->mesh->texture_points + 2 * (size_t)c[3 * k + 1];
    const float* n = (const float*)f->mesh->normals + 3 * (size_t)c[3 * k + 2];
    f->u[k] = t[0], f->v[k] = t[1];
    for (int i = 0; i < 3; i++) {
      const double* row = f->body->turn + 3 * i;
      f->normal[k][i] = (float)(row[0] * n[0] + row[1] * n[1] + row[2] * n[2]);
    }
  }
  for (int k = 0; k < 3; k++) cross(p[(k + 1) % 3], p[(k + 2) % 3], f->weights[k]);
}

static int texel(float at, int n) {  // textures repeat
  int i = (int)((at - floorf(at)) * (float)n);
  return i < 0 ? 0 : i >= n ? n - 1 : i;
}

static void shade(const View* view, const Facet* f, int x, int y, uint8_t* rgb) {
  double ray[3] = {(x + SAMPLE_X - 0.5 * view->width) / view->focal_x,
                   (0.5 * view->height - y - SAMPLE_Y) / view->focal_y, -1};
  double w[3], sum = 0;
  for (int k = 0; k < 3; k++) sum += w[k] = dot(f->weights[k], ray);
  float n[3] = {0, 0, 0}, u = 0, v = 0;
  for (int k = 0; k < 3; k++) {
    float share = sum == 0 ? 1.0f / 3 : (float)(w[k] / sum);
    u += share * f->u[k], v += share * f->v[k];
    for (int i = 0; i < 3; i++) n[i] += share * f->normal[k][i];
  }
  float length = sqrtf(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]);
  length = length > 0 ? length : 1;
  float towards = (n[0] * view->light[0] + n[1] * view->light[1] + n[2] * view->light[2]) / length;
  float upward = fmaxf(0, 2 * towards * n[2] / length - view->light[2]);
  float bright = AMBIENT + DIFFUSE * fmaxf(0, towards) + SHINE * upward * upward;
  static const uint8_t white[3] = {255, 255, 255};
  const uint8_t* colour = white;
  if (f->mesh->texture) {
    size_t row = (size_t)(f->mesh->height - 1 - texel(v, f->mesh->height));
    colour = (const uint8_t*)f->mesh->texture + 3 * (row * f->mesh->width + texel(u, f->mesh->width));
  }
  for (int i = 0; i < 3; i++) {
    float value = bright * (float)(int)((float)colour[i] * f->body->colour[i]);
    rgb[i] = value > 255 ? 255 : (uint8_t)value;
  }
}

// Draw the view into its picture.
void raster_draw(const View* view) {
  size_t pixels = (size_t)view->width * view->height;
  float *inverse = (float*)view->inverse, *depth = (float*)view->depth;
  int32_t* owner = (int32_t*)view->owner;
  memset(inverse, 0, pixels * sizeof(float));
  memset(owner, 0xff, 2 * pixels * sizeof(int32_t));
  for (int i = 0; i < view->num_bodies; i++) draw(view, i);
  Facet f = {0};
  int32_t body = -1, triangle = -1;
  for (size_t i = 0; i < pixels; i++) {
    uint8_t* rgb = (uint8_t*)view->rgb + 3 * i;
    depth[i] = inverse[i] > 0 ? 1 / inverse[i] : (float)view->far;
    if (owner[2 * i] < 0) {
      for (int k = 0; k < 3; k++) rgb[k] = (uint8_t)view->background[k];
      continue;
    }
    if (owner[2 * i] != body || owner[2 * i + 1] != triangle) {
      body = owner[2 * i], triangle = owner[2 * i + 1];
      look_up(view, body, triangle, &f);
    }
    shade(view, &f, (int)(i % view->width), (int)(i / view->width), rgb);
  }
}

// --- PNG -----------------------------------------------------------------------------------------------------------

static int paeth(int a, int b, int c) {
  int p = a + b - c, pa = abs(p - a), pb = abs(p - b), pc = abs(p - c);
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

// Undo PNG's row filters (PNG specification, section 9): rows of 1 + stride bytes in, of stride bytes out; `step` is the
// number of bytes of a pixel. Returns 0, or -1 for an unknown filter.
int32_t png_rows(const uint8_t* in, uint8_t* out, int32_t rows, int32_t stride, int32_t step) {
  for (int y = 0; y < rows; y++, in += stride + 1, out += stride) {
    const uint8_t* above = y ? out - stride : 0;
    for (int x = 0; x < stride; x++) {
      int a = x >= step ? out[x - step] : 0, b = above ? above[x] : 0, c = above && x >= step ? above[x - step] : 0, add;
      switch (in[0]) {
        case 0: add = 0; break;
        case 1: add = a; break;
        case 2: add = b; break;
        case 3: add = (a + b) / 2; break;
        case 4: add = paeth(a, b, c); break;
        default: return -1;
      }
      out[x] = (uint8_t)(in[1 + x] + add);
    }
  }
  return 0;
}
