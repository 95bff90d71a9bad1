/**
 * The order of test files: those known to take the longest first, so that none of them runs alone at the end; a fresh clone remembers no durations.
 * Those in which Redis goes away are among them, as ioredis keeps a process for two seconds then, which jest takes for a leak in the last one.
 */
const Sequencer = require('@jest/test-sequencer').default;

const LONGEST = [
  'e2e/demo', 'integration/agent-upgrade', 'integration/deploy', 'integration/bundle-arm64', 'e2e/engine', 'integration/bundle', 'integration/fleet',
  'gateway/faults', 'rollout/staged-rollouts', 'rollout/model-change', 'learner/src/main', 'drift/drift', 'learner/src/learner-job', 'operator/operator-api',
  'gateway/agent-gateway', 'operator/device-watch', 'learner/src/job-worker',
];

const place = ({ path }) => {
  const at = LONGEST.findIndex((name) => path.endsWith(`/${name}.test.ts`));
  return at < 0 ? LONGEST.length : at;
};

module.exports = class LongestFirst extends Sequencer {
  sort(tests) {
    return [...super.sort(tests)].sort((a, b) => place(a) - place(b));
  }
};
