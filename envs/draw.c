// Pictures of a MuJoCo scene without OpenGL: triangles in homogeneous coordinates (Olano and Greer 1997), a z-buffer of
// 1/z that remembers who owns each pixel, and then colours for what was left visible only: light at the corners of
// triangles, as OpenGL's fixed pipeline has it, and textures with two levels of detail.
//
// Compiled and loaded by draw.py. A camera looks along z, y is up.

#include "draw.h"

void draw_sizes(int32_t* sizes) {
  sizes[0] = sizeof(Shape), sizes[1] = sizeof(Texture), sizes[2] = sizeof(Light), sizes[3] = sizeof(Scene);
  sizes[4] = sizeof(View), sizes[5] = sizeof(Drawn), sizes[6] = sizeof(Frame);
}

// --- where things are ----------------------------------------------------------------------------------------------

static void to_own(const Frame* f, const float* world, int point, float* out) {
  double d[3];
  for (int k = 0; k < 3; k++) d[k] = world[k] - (point ? f->place[k] : 0);
  for (int k = 0; k < 3; k++) out[k] = (float)(f->turn[k] * d[0] + f->turn[3 + k] * d[1] + f->turn[6 + k] * d[2]);
}

// The frame of a shape and the lights in its axes.
static const Frame* place(const Scene* scene, const View* view, int index) {
  const Shape* shape = (const Shape*)scene->shapes + index;
  Frame* f = (Frame*)view->frames + index;
  memcpy(f->turn, (const double*)scene->turns + 9 * shape->place, sizeof f->turn);
  memcpy(f->place, (const double*)scene->places + 3 * shape->place, sizeof f->place);
  double d[3];
  for (int k = 0; k < 3; k++) d[k] = f->place[k] - view->position[k];
  for (int i = 0; i < 3; i++) {
    const double* axis = view->axes + 3 * i;
    for (int j = 0; j < 3; j++)
      f->m[3 * i + j] = (float)(axis[0] * f->turn[j] + axis[1] * f->turn[3 + j] + axis[2] * f->turn[6 + j]);
    f->t[i] = (float)(axis[0] * d[0] + axis[1] * d[1] + axis[2] * d[2]);
    f->eye[i] = (float)-(f->turn[i] * d[0] + f->turn[3 + i] * d[1] + f->turn[6 + i] * d[2]);
  }
  const Light* lights = (const Light*)scene->lights;
  Light* own = (Light*)view->near_lights + (size_t)index * scene->num_lights;
  for (int i = 0; i < scene->num_lights; i++) {
    own[i] = lights[i];
    to_own(f, lights[i].position, 1, own[i].position);
    to_own(f, lights[i].direction, 0, own[i].direction);
  }
  return f;
}

// Whether any part of the shape's box may be inside of the pyramid that the camera sees.
static int in_view(const View* view, const Shape* shape, const Frame* f) {
  float c[3], w = (float)(0.5 * view->width / view->focal), h = (float)(0.5 * view->height / view->focal);
  const float sides[5][3] = {{1, 0, w}, {-1, 0, w}, {0, 1, h}, {0, -1, h}, {0, 0, 1}};
  for (int i = 0; i < 3; i++) c[i] = f->t[i] + dot(f->m + 3 * i, shape->middle);
  for (int s = 0; s < 5; s++) {
    float reach = 0;
    for (int j = 0; j < 3; j++) {
      const float column[3] = {f->m[j], f->m[3 + j], f->m[6 + j]};
      reach += fabsf(dot(sides[s], column)) * shape->half[j];
    }
    if (dot(sides[s], c) + reach < 0) return 0;
  }
  return 1;
}

// Corners in view coordinates (three rows of `seen`) and in pixels (two rows of `screen`); 1 if all are in front.
static int project(const Scene* scene, const View* view, const Shape* shape, const Frame* f) {
  int n = shape->corners, stride = view->room;
  const float* p = (const float*)scene->positions + 3 * (size_t)shape->corner;
  float *x = (float*)view->seen, *y = x + stride, *z = y + stride, *u = (float*)view->screen, *v = u + stride;
  float focal = (float)view->focal, cx = 0.5f * view->width, cy = 0.5f * view->height, nearest = 1e30f;
  for (int i = 0; i < n; i++) {
    float a = p[3 * i], b = p[3 * i + 1], c = p[3 * i + 2];
    x[i] = f->m[0] * a + f->m[1] * b + f->m[2] * c + f->t[0];
    y[i] = f->m[3] * a + f->m[4] * b + f->m[5] * c + f->t[1];
    z[i] = f->m[6] * a + f->m[7] * b + f->m[8] * c + f->t[2];
  }
  for (int i = 0; i < n; i++) nearest = z[i] < nearest ? z[i] : nearest;
  for (int i = 0; i < n; i++) {
    float k = focal / z[i];
    u[i] = cx + k * x[i];
    v[i] = cy - k * y[i];
  }
  return nearest >= NEAR;
}

// --- which pixels a face owns --------------------------------------------------------------------------------------

// Coefficients of the corners' shares over z, for pixel indices; 0 if the face is seen edge-on.
static int edges(const View* view, const int32_t* corner, float (*e)[3]) {
  const float *x = (const float*)view->seen, *y = x + view->room, *z = y + view->room;
  double p[3][3], cx = 0.5 * view->width - 0.5, cy = 0.5 * view->height - 0.5, k = 1 / view->focal;
  for (int i = 0; i < 3; i++) p[i][0] = x[corner[i]], p[i][1] = y[corner[i]], p[i][2] = z[corner[i]];
  double cross[3][3], volume = 0;
  for (int i = 0; i < 3; i++) {
    const double *a = p[(i + 1) % 3], *b = p[(i + 2) % 3];
    cross[i][0] = a[1] * b[2] - a[2] * b[1];
    cross[i][1] = a[2] * b[0] - a[0] * b[2];
    cross[i][2] = a[0] * b[1] - a[1] * b[0];
  }
  for (int j = 0; j < 3; j++) volume += p[0][j] * cross[0][j];
  if (fabs(volume) < 1e-18) return 0;
  for (int i = 0; i < 3; i++) {
    double gx = cross[i][0] / volume * k, gy = -cross[i][1] / volume * k;
    e[i][0] = (float)gx, e[i][1] = (float)gy, e[i][2] = (float)(cross[i][2] / volume - gx * cx - gy * cy);
  }
  return 1;
}

static float row(const float* v, float x, float y) { return v[0] * x + v[1] * y + v[2]; }

// Columns from *first to before *last in which all three shares are positive in row y.
static void span(const float (*e)[3], const float* slope, int y, int* first, int* last) {
  float from = (float)*first, to = (float)(*last - 1);
  for (int i = 0; i < 3; i++) {
    float rest = e[i][1] * (float)y + e[i][2], at = rest * slope[i];
    if (e[i][0] > 0) from = at > from ? at : from;
    else if (e[i][0] < 0) to = at < to ? at : to;
    else if (rest < 0) to = -1;
  }
  if (from <= to) *first = (int)ceilf(from), *last = (int)to + 1;
  else *last = *first;
}

// A row of few pixels: narrow `span` without a division.
static void trim(const float (*e)[3], int y, int* first, int* last) {
  int from = *last, to = *first;
  for (int x = *first; x < *last; x++) {
    int in = 1;
    for (int i = 0; i < 3; i++) in &= row(e[i], (float)x, (float)y) >= 0;
    if (in && from > x) from = x;
    if (in) to = x + 1;
  }
  *first = from, *last = to;
}

static int cover(const View* view, const float (*e)[3], const int* box, int32_t owner) {
  float gx = e[0][0] + e[1][0] + e[2][0], gy = e[0][1] + e[1][1] + e[2][1], g = e[0][2] + e[1][2] + e[2][2];
  float slope[3];
  int any = 0, narrow = box[2] - box[0] <= FEW;
  for (int i = 0; i < 3; i++) slope[i] = e[i][0] == 0 ? 0 : -1 / e[i][0];
  for (int y = box[1]; y < box[3]; y++) {
    int first = box[0], last = box[2];
    if (narrow) trim(e, y, &first, &last);
    else span(e, slope, y, &first, &last);
    float start = gy * (float)y + g;
    float* z = (float*)view->inverse + (size_t)y * view->width;
    int32_t* o = (int32_t*)view->owner + (size_t)y * view->width;
    for (int x = first; x < last; x++) {
      float here = start + gx * (float)x;
      int nearer = here > z[x] && here <= view->nearest;
      z[x] = nearer ? here : z[x];
      o[x] = nearer ? owner : o[x];
      any |= nearer;
    }
  }
  return any;
}

// Rectangle of pixel centres around a face: x0, y0, x1, y1; 0 if there are none.
static int around(const View* view, const int32_t* corner, int in_front, int* box) {
  box[0] = box[1] = 0, box[2] = view->width, box[3] = view->height;
  if (!in_front) return 1;
  const float *u = (const float*)view->screen, *v = u + view->room;
  float a = u[corner[0]], b = u[corner[1]], c = u[corner[2]];
  float left = smaller_of(a, smaller_of(b, c)) - 0.5f, right = larger_of(a, larger_of(b, c)) - 0.5f;
  a = v[corner[0]], b = v[corner[1]], c = v[corner[2]];
  float top = smaller_of(a, smaller_of(b, c)) - 0.5f, bottom = larger_of(a, larger_of(b, c)) - 0.5f;
  if (!(right >= 0 && bottom >= 0 && left < (float)view->width && top < (float)view->height)) return 0;
  if (left > 0) box[0] = (int)ceilf(left);
  if (top > 0) box[1] = (int)ceilf(top);
  if (right + 1 < (float)view->width) box[2] = (int)floorf(right) + 1;
  if (bottom + 1 < (float)view->height) box[3] = (int)floorf(bottom) + 1;
  return box[0] < box[2] && box[1] < box[3];
}

// --- light ---------------------------------------------------------------------------------------------------------

// Light on one corner, in the shape's own axes; colours from 0 to 1 (OpenGL 1.5, section 2.14).
static void lamp(const Light* light, const Shape* shape, const float* p, const float* n, const float* eye, float* out) {
  float to[3], strength = 1;
  if (light->directional) {
    for (int k = 0; k < 3; k++) to[k] = -light->direction[k];
  } else {
    for (int k = 0; k < 3; k++) to[k] = light->position[k] - p[k];
    float far = sqrtf(dot(to, to)), scale = far > 1e-9f ? 1 / far : 0;
    for (int k = 0; k < 3; k++) to[k] *= scale;
    const float* a = light->attenuation;
    strength = 1 / (a[0] + a[1] * far + a[2] * far * far);
    if (light->cosine > -2) {
      float along = -dot(to, light->direction);
      strength *= along < light->cosine ? 0 : light->exponent == 0 ? 1 : powf(along > 0 ? along : 0, light->exponent);
    }
  }
  if (strength == 0) return;
  float facing = dot(n, to), shine = 0;
  if (facing > 0 && shape->specular > 0) {
    float half[3] = {eye[0] + to[0], eye[1] + to[1], eye[2] + to[2]};
    float length = sqrtf(dot(half, half)), along = length > 1e-9f ? dot(n, half) / length : 0;
    shine = along > 0 ? shape->specular * powf(along, shape->shininess) : 0;
  }
  for (int k = 0; k < 3; k++) {
    float own = light->ambient[k] + (facing > 0 ? facing * light->diffuse[k] : 0);
    out[k] += strength * (own * shape->colour[k] + shine * light->specular[k]);
  }
}

// Lit colour of a corner, computed when it is first asked for.
static const float* lit(const Scene* scene, const View* view, int index, int corner) {
  const Shape* shape = (const Shape*)scene->shapes + index;
  const Frame* f = (const Frame*)view->frames + index;
  size_t at = (size_t)shape->corner + corner;
  float* out = (float*)view->lamps + 3 * at;
  uint8_t* stamp = (uint8_t*)view->stamps + at;
  if (*stamp) return out;
  *stamp = 1;
  const float *p = (const float*)scene->positions + 3 * at, *n = (const float*)scene->normals + 3 * at;
  float eye[3] = {f->eye[0] - p[0], f->eye[1] - p[1], f->eye[2] - p[2]}, length = sqrtf(dot(eye, eye));
  for (int k = 0; k < 3; k++) eye[k] /= length > 1e-9f ? length : 1;
  for (int k = 0; k < 3; k++) out[k] = (shape->emission + scene->ambient) * shape->colour[k];
  const Light* lights = (const Light*)view->near_lights + (size_t)index * scene->num_lights;
  for (int i = 0; i < scene->num_lights; i++) lamp(lights + i, shape, p, n, eye, out);
  for (int k = 0; k < 3; k++) out[k] = clamp(out[k]);
  return out;
}

// --- colours -------------------------------------------------------------------------------------------------------

// What is needed to colour a face, computed when its first pixel is reached.
static void light_up(const Scene* scene, const View* view, Drawn* d) {
  const int32_t* corner = (const int32_t*)scene->faces + 3 * (size_t)d->face;
  const Shape* shape = (const Shape*)scene->shapes + d->shape;
  memset(d->shade, 0, sizeof d->shade);
  memset(d->at, 0, sizeof d->at);
  for (int i = 0; i < 3; i++) {
    const float* colour = lit(scene, view, d->shape, corner[i]);
    const float* own = (const float*)scene->coordinates + 3 * (size_t)(shape->corner + corner[i]);
    for (int j = 0; j < 3; j++) {
      for (int k = 0; k < 3; k++) d->shade[k][j] += colour[k] * d->e[i][j], d->at[k][j] += own[k] * d->e[i][j];
      d->at[3][j] += d->e[i][j];
    }
  }
  d->lit = 1;
}

static Four texture_at(const Texture* t, const Drawn* d, float x, float y, float z) {
  float at[3], dx[3], dy[3];
  for (int k = 0; k < 3; k++) {
    at[k] = z * row(d->at[k], x, y);
    dx[k] = z * (d->at[k][0] - at[k] * d->at[3][0]), dy[k] = z * (d->at[k][1] - at[k] * d->at[3][1]);
  }
  if (t->sides > 1) return cube(t, at, dx, dy);
  float w = (float)t->width, h = (float)t->height;
  float sx = w * w * dx[0] * dx[0] + h * h * dx[1] * dx[1], sy = w * w * dy[0] * dy[0] + h * h * dy[1] * dy[1];
  return sample(t, 0, at[0] - floorf(at[0]), at[1] - floorf(at[1]), larger_of(sx, sy));
}

static Four colour(const Texture* texture, const Drawn* d, int x, int y, float inverse) {
  float z = 1 / inverse, fx = (float)x, fy = (float)y;
  const float(*c)[3] = d->shade;
  Four lit = {z * row(c[0], fx, fy), z * row(c[1], fx, fy), z * row(c[2], fx, fy), 0};
  return texture ? lit * texture_at(texture, d, fx, fy, z) : lit;
}

static const Texture* texture_of(const Scene* scene, const Drawn* d) {
  int32_t index = ((const Shape*)scene->shapes)[d->shape].texture;
  return index < 0 ? 0 : (const Texture*)scene->textures + index;
}

static Four sky_at(const Scene* scene, const View* view, int x, int y) {
  float d[3], dx[3], dy[3], k = (float)(1 / view->focal);
  double a = (x + 0.5 - 0.5 * view->width) * k, b = (0.5 * view->height - y - 0.5) * k;
  const double *right = view->axes, *up = right + 3, *forward = up + 3;
  static const int from[3] = {0, 2, 1};  // a sky's axes: x, z and -y of the world
  for (int i = 0; i < 3; i++) {
    int j = from[i];
    double sign = i == 2 ? -1 : 1;
    d[i] = (float)(sign * (a * right[j] + b * up[j] + forward[j]));
    dx[i] = (float)(sign * k * right[j]), dy[i] = (float)(-sign * k * up[j]);
  }
  return cube((const Texture*)scene->textures + scene->sky, d, dx, dy);
}

static void put(uint8_t* pixel, Four c) {
  for (int k = 0; k < 3; k++) pixel[k] = (uint8_t)(255 * clamp(c[k]) + 0.5f);
}

static void paint(const Scene* scene, const View* view) {
  const int32_t* owner = (const int32_t*)view->owner;
  const float* inverse = (const float*)view->inverse;
  uint8_t* rgb = (uint8_t*)view->rgb;
  for (int y = 0; y < view->height; y++) {
    const int32_t* owners = owner + (size_t)y * view->width;
    for (int x = 0, end; x < view->width; x = end) {
      for (end = x + 1; end < view->width && owners[end] == owners[x];) end++;
      Drawn* d = owners[x] < 0 ? 0 : (Drawn*)view->drawn + owners[x];
      const Texture* texture = d ? texture_of(scene, d) : 0;
      if (d && !d->lit) light_up(scene, view, d);
      for (int i = x; i < end; i++) {
        size_t at = (size_t)y * view->width + i;
        Four c = {0, 0, 0, 0};
        if (d) c = colour(texture, d, i, y, inverse[at]);
        else if (scene->sky >= 0) c = sky_at(scene, view, i, y);
        put(rgb + 3 * at, c);
      }
    }
  }
}

// --- shapes --------------------------------------------------------------------------------------------------------

// Indices of the shape's faces that look towards the camera. Returns how many.
static int facing(const Scene* scene, const View* view, const Shape* shape, const Frame* f) {
  const float* plane = (const float*)scene->planes + shape->face;
  size_t n = scene->num_faces;
  int32_t* front = (int32_t*)view->front;
  int count = 0;
  for (int i = 0; i < shape->faces; i++) {
    front[count] = i;
    count += plane[i] * f->eye[0] + plane[n + i] * f->eye[1] + plane[2 * n + i] * f->eye[2] > plane[3 * n + i];
  }
  return count;
}

// Set up a face; 0 if it covers no centre of a pixel of `box`, which is computed here.
static int set_up(const Scene* scene, const View* view, int index, int face, int in_front, int* box, Drawn* d) {
  const Shape* shape = (const Shape*)scene->shapes + index;
  const int32_t* corner = (const int32_t*)scene->faces + 3 * (size_t)(shape->face + face);
  d->shape = index, d->face = shape->face + face, d->lit = 0;
  return around(view, corner, in_front, box) && edges(view, corner, d->e);
}

// Draw the faces of a shape into owner and depth. Returns how many faces are drawn now.
static int solid(const Scene* scene, const View* view, int index, int count) {
  const Shape* shape = (const Shape*)scene->shapes + index;
  const Frame* f = place(scene, view, index);
  if (!in_view(view, shape, f)) return count;
  int in_front = project(scene, view, shape, f), faces = facing(scene, view, shape, f), box[4];
  for (int i = 0; i < faces; i++) {
    Drawn* d = (Drawn*)view->drawn + count;
    if (!set_up(scene, view, index, ((const int32_t*)view->front)[i], in_front, box, d)) continue;
    count += cover(view, (const float(*)[3])d->e, box, count);
  }
  return count;
}

// Blend the faces of a shape over the picture, where nothing opaque is nearer.
static void blend(const Scene* scene, const View* view, int index, Drawn* d) {
  const Shape* shape = (const Shape*)scene->shapes + index;
  const Frame* f = place(scene, view, index);
  if (!in_view(view, shape, f)) return;
  int in_front = project(scene, view, shape, f), faces = facing(scene, view, shape, f), box[4];
  float alpha = shape->colour[3];
  for (int i = 0; i < faces; i++) {
    if (!set_up(scene, view, index, ((const int32_t*)view->front)[i], in_front, box, d)) continue;
    light_up(scene, view, d);
    for (int y = box[1]; y < box[3]; y++) {
      int first = box[0], last = box[2];
      trim((const float(*)[3])d->e, y, &first, &last);
      for (int x = first; x < last; x++) {
        size_t at = (size_t)y * view->width + x;
        float here = row(d->at[3], (float)x, (float)y);
        if (here < ((const float*)view->inverse)[at] || here > view->nearest) continue;
        uint8_t* pixel = (uint8_t*)view->rgb + 3 * at;
        Four behind = {pixel[0], pixel[1], pixel[2], 0};
        put(pixel, alpha * colour(texture_of(scene, d), d, x, y, here) + (1 - alpha) / 255 * behind);
      }
    }
  }
}

// Draw the view. `blended` lists the `num_blended` shapes with alpha below 1, the nearest first.
void draw(const Scene* scene, const View* view, const int32_t* blended, int32_t num_blended) {
  size_t pixels = (size_t)view->width * view->height;
  int count = 0;
  for (size_t i = 0; i < pixels; i++) ((float*)view->inverse)[i] = view->farthest;
  memset((void*)view->owner, 0xff, pixels * sizeof(int32_t));
  memset((void*)view->stamps, 0, view->room);
  const Shape* shapes = (const Shape*)scene->shapes;
  for (int i = 0; i < scene->num_shapes; i++)
    if (!shapes[i].blended) count = solid(scene, view, i, count);
  paint(scene, view);
  // MuJoCo draws these twice, from near to far and back, and so do we.
  Drawn* spare = (Drawn*)view->drawn + count;
  for (int i = 0; i < num_blended; i++) blend(scene, view, blended[i], spare);
  for (int i = num_blended - 1; i >= 0; i--) blend(scene, view, blended[i], spare);
}
