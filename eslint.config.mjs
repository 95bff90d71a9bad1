import tseslint from 'typescript-eslint';

// What may import what (see the architecture section of the README): a boundary crossed is a lint error.
const forbid = (...groups) => ({
  'no-restricted-imports': ['error', { patterns: groups.map((group) => ({ regex: group, message: 'crosses a boundary of the architecture' })) }],
});

export default tseslint.config(
  { ignores: ['**/dist/**', '**/node_modules/**', 'proto/src/gen/**', 'edge-agent/native/build*/**', 'coverage/**'] },
  ...tseslint.configs.recommended,
  {
    rules: {
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', caughtErrors: 'none' }],
      '@typescript-eslint/no-non-null-assertion': 'off',
      'no-console': 'error',
      eqeqeq: 'error',
    },
  },
  { files: ['**/*.js', '**/*.mjs'], rules: { '@typescript-eslint/no-require-imports': 'off', 'no-console': 'off' } },
  { files: ['proto/src/**', 'services/runtime/src/**'], rules: forbid('^@moefleet/') },
  { files: ['edge-agent/src/**'], rules: forbid('^@moefleet/(coordinator|learner|replay|demo)', '^moefleet', '^ioredis$', '^bullmq$') },
  { files: ['coordinator/src/**'], rules: forbid('^@moefleet/(edge-agent|learner|replay|demo)', '^moefleet') },
  { files: ['coordinator/src/gateway/**'], rules: forbid('/operator/', '^@moefleet/(edge-agent|learner|replay|demo)', '^moefleet') },
  { files: ['coordinator/src/operator/**'], rules: forbid('/gateway/', '^@moefleet/(edge-agent|learner|replay|demo)', '^moefleet') },
  { files: ['services/replay/src/**'], rules: forbid('^@moefleet/(coordinator|learner|demo)', '^moefleet', '^@moefleet/edge-agent($|/main)') },
  { files: ['services/learner/src/**'], rules: forbid('^@moefleet/(coordinator|demo)', '^moefleet', '^@moefleet/edge-agent($|/main)') },
);
