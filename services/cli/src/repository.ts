/** The checkout's root. This file lies in services/cli/{src,dist}. */
import { join } from 'node:path';

export const REPOSITORY = join(__dirname, '..', '..', '..');
