// Two projects: `unit` lives beside the code it tests; `system` (test/) starts real processes, Redis and Jaeger.
const shared = {
  testEnvironment: 'node',
  transform: { '^.+\\.ts$': '@swc/jest' },
  moduleNameMapper: {
    '^@moefleet/proto$': '<rootDir>/proto/src/index.ts',
    '^@moefleet/runtime$': '<rootDir>/services/runtime/src/index.ts',
    '^@moefleet/runtime/redis$': '<rootDir>/services/runtime/src/redis/index.ts',
    '^@moefleet/edge-agent/engine$': '<rootDir>/edge-agent/src/engine/index.ts',
    '^@moefleet/edge-agent/main$': '<rootDir>/edge-agent/src/main.ts',
    '^@moefleet/coordinator/main$': '<rootDir>/coordinator/src/main.ts',
    '^@moefleet/coordinator/identity/(.*)$': '<rootDir>/coordinator/src/identity/$1.ts',
    '^@moefleet/demo/(.*)$': '<rootDir>/services/demo/src/$1.ts',
    '^@moefleet/replay$': '<rootDir>/services/replay/src/index.ts',
    '^@moefleet/learner/main$': '<rootDir>/services/learner/src/main.ts',
  },
  modulePathIgnorePatterns: ['/dist/', '/native/build'],
};
module.exports = {
  projects: [
    { ...shared, displayName: 'unit', testMatch: ['<rootDir>/{proto,edge-agent,coordinator,services/*}/src/**/*.test.ts'] },
    { ...shared, displayName: 'system', testMatch: ['<rootDir>/test/{integration,e2e,load}/**/*.test.ts'] },
  ],
  testSequencer: '<rootDir>/test/harness/longest-first.js',
  globalTeardown: '<rootDir>/test/harness/left-open.js',
  testTimeout: 120000,
};
