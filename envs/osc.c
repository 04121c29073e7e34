// The substeps of one control step of robosuite 1.4's Panda in one call: mj_step1, controller, gripper, mj_step2.
//
// Compiled and loaded by osc.py, which fills Setup and reads and writes State: its SETUP and STATE list the same
// fields in the same order. What is computed, and when, follows robosuite/controllers/{osc,joint_*}.py and
// robosuite/robots/single_arm.py of version 1.4.0 (MIT); only the linear algebra differs: one Cholesky factor of the
// mass matrix serves everything for which robosuite inverts matrices, and the results agree up to rounding.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <mujoco/mujoco.h>

#define JOINTS 7
enum { OSC_POSE, JOINT_POSITION, JOINT_VELOCITY, JOINT_TORQUE };
enum { FINE, SINGULAR, UNSTABLE };
enum { WINDOW = 5, VELOCITIES = 10 };  // lengths of robosuite's ring buffers

typedef struct {
  uint64_t model, data;
  int32_t kind, substeps, site, uncoupled, limited, inputs;  // inputs: entries of the arm's part of an action
  int32_t qpos[JOINTS], dof[JOINTS], motors[JOINTS], fingers[2], force, torque;  // the last two: sensor addresses
  double input_min[JOINTS], input_max[JOINTS], input_mid[JOINTS], scale[JOINTS], output_mid[JOINTS];
  double limit_low[JOINTS], limit_high[JOINTS];  // of the goal: metres, radians, rad/s or N m, whatever it is
  double kp[JOINTS], kd[JOINTS], ki[JOINTS], control_hz, finger_speed;
} Setup;

typedef struct {
  int32_t new_update, saturated, ptr, size, velocities_ptr;
  double action[JOINTS + 1], initial_joint[JOINTS], current_action[2];
  double ee_pos[3], ee_ori_mat[9], ee_pos_vel[3], ee_ori_vel[3], joint_pos[JOINTS], joint_vel[JOINTS];
  double jacobian[6 * JOINTS], mass_matrix[JOINTS * JOINTS];
  double goal_pos[3], goal_ori[9], goal[JOINTS];  // `goal`: position, velocity or torque of the joint controllers
  double torques[JOINTS], clipped[JOINTS];        // as the controller asked for them, as the motors got them
  double last_err[JOINTS], summed_err[JOINTS], errors[WINDOW * JOINTS];
  double recent_qpos[JOINTS], recent_torques[JOINTS], recent_force[6], recent_pose[7], recent_vel[6];
  double recent_acc[6], velocities[VELOCITIES * 6];
} State;

static double clip(double x, double low, double high) { return fmin(fmax(x, low), high); }

static double dot(const double* a, const double* b, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// --- linear algebra ------------------------------------------------------------------------------------------------

// Lower Cholesky factor of the symmetric a [n, n], in place; 0 if a is (nearly) singular, indefinite or not finite.
static int factor(double* a, int n) {
  double largest = 0;
  for (int i = 0; i < n; i++) largest = fmax(largest, a[i * n + i]);
  for (int i = 0; i < n; i++) {
    for (int j = 0; j <= i; j++) {
      double rest = a[i * n + j] - dot(a + i * n, a + j * n, j);
      if (i == j) {
        if (!(rest > 1e-12 * largest) || !isfinite(rest)) return 0;
        a[i * n + i] = sqrt(rest);
      } else {
        a[i * n + j] = rest / a[j * n + j];
      }
    }
  }
  return 1;
}

static void solve_lower(const double* l, double* x, int n) {
  for (int i = 0; i < n; i++) x[i] = (x[i] - dot(l + i * n, x, i)) / l[i * n + i];
}

static void solve_upper(const double* l, double* x, int n) {
  for (int i = n - 1; i >= 0; i--) {
    for (int j = i + 1; j < n; j++) x[i] -= l[j * n + i] * x[j];
    x[i] /= l[i * n + i];
  }
}

// x <- pinv(a) x for a symmetric a, by Jacobi rotations; singular values below 1e-15 of the largest count as zero.
static void solve_pseudo(const double* matrix, double* x, int n) {
  double a[36], v[36], y[6];
  memcpy(a, matrix, n * n * sizeof(double));
  for (int i = 0; i < n * n; i++) v[i] = i % (n + 1) == 0;
  for (int sweep = 0; sweep < 60; sweep++) {
    for (int p = 0; p < n; p++) {
      for (int q = p + 1; q < n; q++) {
        if (a[p * n + q] == 0) continue;
        double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
        double t = copysign(1, theta) / (fabs(theta) + sqrt(theta * theta + 1)), c = 1 / sqrt(t * t + 1), s = t * c;
        for (int k = 0; k < n; k++) {
          double kp = a[k * n + p], kq = a[k * n + q];
          a[k * n + p] = c * kp - s * kq, a[k * n + q] = s * kp + c * kq;
        }
        for (int k = 0; k < n; k++) {
          double pk = a[p * n + k], qk = a[q * n + k], kp = v[k * n + p], kq = v[k * n + q];
          a[p * n + k] = c * pk - s * qk, a[q * n + k] = s * pk + c * qk;
          v[k * n + p] = c * kp - s * kq, v[k * n + q] = s * kp + c * kq;
        }
      }
    }
  }
  double largest = 0;
  for (int i = 0; i < n; i++) largest = fmax(largest, fabs(a[i * n + i]));
  for (int i = 0; i < n; i++) {
    y[i] = 0;
    for (int k = 0; k < n; k++) y[i] += v[k * n + i] * x[k];
    y[i] = fabs(a[i * n + i]) > 1e-15 * largest ? y[i] / a[i * n + i] : 0;
  }
  for (int k = 0; k < n; k++) x[k] = dot(v + k * n, y, n);
}

// x <- pinv(a) x for the n columns and rows of a [6, 6] from `first` on; exported for the tests.
void osc_solve(const double* a6, int first, int n, double* x) {
  double a[36], l[36];
  for (int i = 0; i < n; i++) memcpy(a + i * n, a6 + (first + i) * 6 + first, n * sizeof(double));
  memcpy(l, a, n * n * sizeof(double));
  if (factor(l, n)) {
    solve_lower(l, x, n);
    solve_upper(l, x, n);
  } else {
    solve_pseudo(a, x, n);
  }
}

// --- the controllers -----------------------------------------------------------------------------------------------

// What robosuite's Controller.update reads; like there, nothing happens if it is still fresh.
static void update(const Setup* s, const mjModel* m, const mjData* d, State* t) {
  if (!t->new_update) return;
  t->new_update = 0;
  const double* point = d->site_xpos + 3 * s->site;
  const double* com = d->subtree_com + 3 * m->body_rootid[m->site_bodyid[s->site]];
  double offset[3] = {point[0] - com[0], point[1] - com[1], point[2] - com[2]};
  memcpy(t->ee_pos, point, sizeof(t->ee_pos));
  memcpy(t->ee_ori_mat, d->site_xmat + 9 * s->site, sizeof(t->ee_ori_mat));
  for (int i = 0; i < JOINTS; i++) {
    const double* c = d->cdof + 6 * s->dof[i];  // rotation, then translation
    double lever[3] = {c[1] * offset[2] - c[2] * offset[1], c[2] * offset[0] - c[0] * offset[2],
                       c[0] * offset[1] - c[1] * offset[0]};
    for (int k = 0; k < 3; k++) {
      t->jacobian[k * JOINTS + i] = c[3 + k] + lever[k];
      t->jacobian[(3 + k) * JOINTS + i] = c[k];
    }
    t->joint_pos[i] = d->qpos[s->qpos[i]];
    t->joint_vel[i] = d->qvel[s->dof[i]];
    int address = m->dof_Madr[s->dof[i]];  // the joint itself, then those before it, up to the base
    for (int k = i; k >= 0; k--) t->mass_matrix[i * JOINTS + k] = t->mass_matrix[k * JOINTS + i] = d->qM[address++];
  }
  for (int k = 0; k < 3; k++) {
    t->ee_pos_vel[k] = dot(t->jacobian + k * JOINTS, t->joint_vel, JOINTS);
    t->ee_ori_vel[k] = dot(t->jacobian + (3 + k) * JOINTS, t->joint_vel, JOINTS);
  }
}

// goal_ori <- rotation by the axis-angle vector `turn` times the present orientation. robosuite's quat2mat works in
// single precision, which is visible: the casts and their places are part of the result.
static void turn_goal(const double* turn, State* t) {
  double angle = sqrt(dot(turn, turn, 3)), half = sin(angle / 2), total = 0, r[9];
  float q[4] = {(float)cos(angle / 2), (float)(turn[0] / angle * half), (float)(turn[1] / angle * half),
                (float)(turn[2] / angle * half)};
  for (int i = 0; i < 4; i++) total += (float)(q[i] * q[i]);
  double norm = sqrt(2.0 / (float)total);
  for (int i = 0; i < 4; i++) q[i] = (float)(q[i] * norm);
  float p[4][4];
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < 4; j++) p[i][j] = q[i] * q[j];
  }
  r[0] = 1.0 - p[2][2] - p[3][3], r[1] = p[1][2] - p[3][0], r[2] = p[1][3] + p[2][0];
  r[3] = p[1][2] + p[3][0], r[4] = 1.0 - p[1][1] - p[3][3], r[5] = p[2][3] - p[1][0];
  r[6] = p[1][3] - p[2][0], r[7] = p[2][3] + p[1][0], r[8] = 1.0 - p[1][1] - p[2][2];
  for (int i = 0; i < 3; i++) {
    for (int j = 0; j < 3; j++) {
      t->goal_ori[i * 3 + j] =
          r[i * 3] * t->ee_ori_mat[j] + r[i * 3 + 1] * t->ee_ori_mat[3 + j] + r[i * 3 + 2] * t->ee_ori_mat[6 + j];
    }
  }
}

static void set_goal(const Setup* s, State* t) {
  double scaled[JOINTS];
  for (int i = 0; i < s->inputs; i++) {
    double x = clip(t->action[i], s->input_min[i], s->input_max[i]);
    scaled[i] = (x - s->input_mid[i]) * s->scale[i] + s->output_mid[i];
  }
  double* goal = s->kind == OSC_POSE ? t->goal_pos : t->goal;
  const double* from = s->kind == OSC_POSE ? t->ee_pos : t->joint_pos;
  int relative = s->kind == OSC_POSE || s->kind == JOINT_POSITION;
  if (s->kind == OSC_POSE && (scaled[3] != 0 || scaled[4] != 0 || scaled[5] != 0)) turn_goal(scaled + 3, t);
  for (int i = 0; i < (s->kind == OSC_POSE ? 3 : JOINTS); i++) {
    goal[i] = scaled[i] + (relative ? from[i] : 0);
    if (s->limited) goal[i] = clip(goal[i], s->limit_low[i], s->limit_high[i]);
  }
}

static int run_pose(const Setup* s, State* t) {
  double z[JOINTS * 6], inverse[36], wrench[6], full[6], null[JOINTS], mass[JOINTS * JOINTS];
  const double(*j)[JOINTS] = (const double(*)[JOINTS])t->jacobian;
  memcpy(mass, t->mass_matrix, sizeof(mass));
  if (!factor(mass, JOINTS)) return SINGULAR;
  for (int a = 0; a < 6; a++) {  // z: rows L^-1 j[a], so that z z^T = J M^-1 J^T
    memcpy(z + a * JOINTS, j[a], sizeof(j[a]));
    solve_lower(mass, z + a * JOINTS, JOINTS);
    for (int b = 0; b <= a; b++) inverse[a * 6 + b] = inverse[b * 6 + a] = dot(z + a * JOINTS, z + b * JOINTS, JOINTS);
  }
  const double *now = t->ee_ori_mat, *goal = t->goal_ori;
  for (int k = 0; k < 3; k++) {
    int u = (k + 1) % 3, v = (k + 2) % 3;
    double turn = 0;
    for (int c = 0; c < 3; c++) turn += now[u * 3 + c] * goal[v * 3 + c] - now[v * 3 + c] * goal[u * 3 + c];
    wrench[k] = (t->goal_pos[k] - t->ee_pos[k]) * s->kp[k] - t->ee_pos_vel[k] * s->kd[k];
    wrench[3 + k] = 0.5 * turn * s->kp[3 + k] - t->ee_ori_vel[k] * s->kd[3 + k];
  }
  if (s->uncoupled) {
    osc_solve(inverse, 0, 3, wrench);
    osc_solve(inverse, 3, 3, wrench + 3);
  } else {
    osc_solve(inverse, 0, 6, wrench);
  }
  for (int i = 0; i < JOINTS; i++) {  // pull towards the initial joints, 10 and 2 sqrt(10) ...
    null[i] = 10 * (t->initial_joint[i] - t->joint_pos[i]) - 2 * sqrt(10) * t->joint_vel[i];
  }
  for (int a = 0; a < 6; a++) full[a] = dot(j[a], null, JOINTS);
  osc_solve(inverse, 0, 6, full);  // ... in the null space: (I - J^T Lambda J M^-1) M null = M null - J^T Lambda J null
  for (int i = 0; i < JOINTS; i++) {
    t->torques[i] += dot(t->mass_matrix + i * JOINTS, null, JOINTS);
    for (int a = 0; a < 6; a++) t->torques[i] += j[a][i] * (wrench[a] - full[a]);
  }
  return FINE;
}

static void run_joint_position(const Setup* s, State* t) {
  double pull[JOINTS];
  for (int i = 0; i < JOINTS; i++) pull[i] = (t->goal[i] - t->joint_pos[i]) * s->kp[i] - t->joint_vel[i] * s->kd[i];
  for (int i = 0; i < JOINTS; i++) t->torques[i] += dot(t->mass_matrix + i * JOINTS, pull, JOINTS);
}

static void run_joint_velocity(const Setup* s, const mjModel* m, State* t) {
  int saturated = 0;
  t->ptr = (t->ptr + 1) % WINDOW;
  t->size += t->size < WINDOW;
  for (int i = 0; i < JOINTS; i++) {
    double err = t->goal[i] - t->joint_vel[i], mean = 0;
    t->errors[t->ptr * JOINTS + i] = err - t->last_err[i];
    t->last_err[i] = err;
    if (!t->saturated) t->summed_err[i] += err;
    for (int k = 0; k < t->size; k++) mean += t->errors[k * JOINTS + i];
    double torque = s->kp[i] * err + s->ki[i] * t->summed_err[i] + s->kd[i] * mean / t->size + t->torques[i];
    const double* range = m->actuator_ctrlrange + 2 * s->motors[i];
    t->torques[i] = clip(torque, range[0], range[1]);
    saturated |= t->torques[i] != torque;
  }
  t->saturated = saturated;
}

// --- one substep of the robot --------------------------------------------------------------------------------------

// What SingleArm.control keeps of each policy step.
static void remember(const Setup* s, const mjData* d, State* t) {
  for (int i = 0; i < JOINTS; i++) t->recent_qpos[i] = d->qpos[s->qpos[i]];
  memcpy(t->recent_torques, t->clipped, sizeof(t->clipped));
  memcpy(t->recent_force, d->sensordata + s->force, 3 * sizeof(double));
  memcpy(t->recent_force + 3, d->sensordata + s->torque, 3 * sizeof(double));
  memcpy(t->recent_vel, t->ee_pos_vel, 6 * sizeof(double));  // both velocities
  double q[4];  // w x y z; robosuite stores x y z w with w not negative
  mju_mat2Quat(q, t->ee_ori_mat);
  memcpy(t->recent_pose, t->ee_pos, sizeof(t->ee_pos));
  for (int k = 0; k < 4; k++) t->recent_pose[3 + k] = (q[0] < 0 ? -1 : 1) * q[(k + 1) % 4];
  t->velocities_ptr = (t->velocities_ptr + 1) % VELOCITIES;
  memcpy(t->velocities + t->velocities_ptr * 6, t->recent_vel, sizeof(t->recent_vel));
  for (int k = 0; k < 6; k++) {  // the differences are taken in the buffer's order, as in robosuite
    double span = t->velocities[(VELOCITIES - 1) * 6 + k] - t->velocities[k];
    t->recent_acc[k] = (t->recent_acc[k] + s->control_hz * span) / VELOCITIES;
  }
}

static int control(const Setup* s, const mjModel* m, mjData* d, State* t, int policy_step) {
  int status = FINE;
  update(s, m, d, t);
  if (policy_step) set_goal(s, t);
  for (int i = 0; i < JOINTS; i++) t->torques[i] = d->qfrc_bias[s->dof[i]];
  if (s->kind == OSC_POSE) status = run_pose(s, t);
  if (s->kind == JOINT_POSITION) run_joint_position(s, t);
  if (s->kind == JOINT_VELOCITY) run_joint_velocity(s, m, t);
  for (int i = 0; i < JOINTS; i++) {
    if (s->kind == JOINT_TORQUE) t->torques[i] += t->goal[i];
    const double* range = m->actuator_ctrlrange + 2 * s->motors[i];
    d->ctrl[s->motors[i]] = t->clipped[i] = clip(t->torques[i], range[0], range[1]);
  }
  t->new_update = 1;
  double grip = t->action[s->inputs];
  for (int f = 0; f < 2; f++) {
    double way = (f == 0 ? -1 : 1) * s->finger_speed * ((grip > 0) - (grip < 0));
    t->current_action[f] = clip(t->current_action[f] + way, -1, 1);
    const double* range = m->actuator_ctrlrange + 2 * s->fingers[f];
    d->ctrl[s->fingers[f]] = 0.5 * (range[1] + range[0]) + 0.5 * (range[1] - range[0]) * t->current_action[f];
  }
  if (policy_step) remember(s, d, t);
  return status;
}

static int healthy(const mjModel* m, const mjData* d) {
  const mjWarningStat* w = d->warning;
  if (w[mjWARN_BADQPOS].number || w[mjWARN_BADQVEL].number || w[mjWARN_BADQACC].number) return 0;
  for (int i = 0; i < m->nq; i++) {
    if (!isfinite(d->qpos[i])) return 0;
  }
  for (int i = 0; i < m->nv; i++) {
    if (!isfinite(d->qvel[i])) return 0;
  }
  return 1;
}

// Substeps `from` (counted from 0, which is the policy step) to `to`. Sensors do not act on the motion, and nobody
// sees them before the control step is over: all but the last substep leave them out.
int osc_run(const Setup* s, State* t, int from, int to) {
  mjModel* m = (mjModel*)s->model;
  mjData* d = (mjData*)s->data;
  const int flags = m->opt.disableflags;
  int status = FINE;
  for (int i = from; i < to && status == FINE; i++) {
    m->opt.disableflags = i + 1 < s->substeps ? flags | mjDSBL_SENSOR : flags;
    mj_step1(m, d);
    status = control(s, m, d, t, i == 0);
    if (status == FINE) mj_step2(m, d);
  }
  m->opt.disableflags = flags;
  return status == FINE && !healthy(m, d) ? UNSTABLE : status;
}

void osc_sizes(int32_t* sizes) { sizes[0] = sizeof(Setup), sizes[1] = sizeof(State); }
