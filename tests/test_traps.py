"""Which test or script stands for every trap and acceptance line of the protocol, EC, OEU, SMI, EVE; all must exist.

A line that only a long run can show names its script under ``benchmarks/``; what the script found stands in
``benchmarks/results``.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROTOCOL_TRAPS: dict[str, str] = {
    "T1 doing nothing scores well": "bench/test_bench::test_no_table_without_doing_nothing "
    "bench/test_bench::test_marks",
    "T2 smaller than noise": "bench/test_bench::test_bold_only_beyond_the_noise_floor",
    "T3 collapse": "audit/test_controls::test_t3_a_collapsed_network_has_the_worst_gap "
    "unlearn/test_base::test_gradient_ascent_with_a_large_rate_is_never_a_success",
    "T4 no code moves": "unlearn/test_base::test_t09_nothing_changed_is_an_error",
    "T5 nothing is trained": "unlearn/test_scrub::test_order_of_phases unlearn/test_contract::test_contract",
    "T6 labels that are right": "unlearn/test_rl::test_random_labels_are_never_the_true_ones_unless_allowed "
    "unlearn/test_rl::test_labels_allowed_to_be_true_are_named_in_the_result",
    "T7 masked coordinates move": "unlearn/test_salun::test_coordinates_outside_the_mask_keep_bits_and_codes "
    "unlearn/test_salun::test_masked_gradient_alone_would_not_hold_them",
    "T8 KL averaged over classes": "unlearn/test_scrub::test_distillation_by_hand",
    "T9 constant teacher": "unlearn/test_bad_teacher::test_incompetent_teacher_knows_nothing_and_is_not_constant",
    "T10 boundary shrink": "unlearn/test_boundary_shrink::test_failed_attacks_are_counted_and_take_the_runner_up "
    "unlearn/test_boundary_shrink::test_labels_against_a_plain_computation",
    "T11 importance by batch": "unlearn/test_ssd::test_batch_importance_depends_on_the_batch_size "
    "unlearn/test_ssd::test_sample_importance_is_the_mean_of_squared_gradients_whatever_the_batch_size",
    "T12 dead channels": "unlearn/test_ssd::test_t12_dead_channels_stand_in_the_result",
    "T13 penalty on BatchNorm": "unlearn/test_l1_sparse::test_penalty_covers_weights_only",
    "T14 teacher drifts": "unlearn/test_scrub::test_teacher_stays_as_it_was",
    "T15 shuffled labels": "unlearn/test_qmul::test_labels_are_kept_with_their_samples "
    "unlearn/test_qmul::test_shuffled_labels_belong_to_other_samples",
    "T16 class left in test": "bench/test_traps::test_t16_test_accuracy_counts_retained_classes_only "
    "audit/test_mia::test_t16_a_forgotten_class_is_taken_out_of_test_and_read_beside",
    "T17 modified entropy": "audit/test_scores::test_t17_modified_entropy_is_the_glossary_formula "
    "audit/test_mia::test_summary_survives_broken_logits_and_gap_averages_four_numbers",
    "T18 degenerate attack": "bench/test_traps::test_t18_a_degenerate_attack_earns_no_bold "
    "audit/test_mia::test_t18_constant_confidences_are_degenerate",
    "T19 members in data order": "audit/test_mia::test_t19_the_order_of_the_data_does_not_matter",
    "T20 transforms": "bench/test_traps::test_t20_evaluation_knows_neither_training_mode_nor_training_transforms",
    "T21 lr chosen on test": "bench/test_bench::test_a_tuner_that_peeks_is_caught "
    "bench/test_traps::test_t21_reference_networks_have_the_recipe_of_the_original",
    "T22 time without preparation": "bench/test_traps::test_t22_time_is_that_of_the_whole_call",
    "T23 published numbers": "bench/test_traps::test_t23_tables_hold_what_was_run_and_nothing_else "
    "bench/test_traps::test_t23_no_page_sets_published_figures_beside_ours",
}

PROTOCOL: dict[str, str] = {
    "1 losses by hand": "unlearn/test_baselines::test_losses_by_hand unlearn/test_scrub::test_both_phases_by_hand "
    "unlearn/test_bad_teacher::test_loss_by_hand unlearn/test_l1_sparse::test_schedule_by_hand "
    "unlearn/test_qmul::test_weights_by_hand unlearn/test_qmul::test_similar_label_by_hand "
    "unlearn/test_ssd::test_factors_by_hand",
    "2 contract": "unlearn/test_contract::test_contract unlearn/test_contract::test_resume_after_sigkill "
    "unlearn/test_contract::test_resume_after_a_kill_at_any_step_gives_the_same_bits",
    "3 Q-MUL's switches": "unlearn/test_qmul::test_variants_and_switches "
    "unlearn/test_qmul::test_index_shift_reproduces_the_wrong_label "
    "unlearn/test_qmul::test_switches_reach_the_label_table "
    "unlearn/test_qmul::test_dropped_pixels_are_few_and_of_forget_samples_with_random_labels_alone "
    "unlearn/test_qmul::test_shuffled_labels_belong_to_other_samples",
    "4 directions are marked": "bench/test_bench::test_marks_of_a_forgotten_class_and_of_a_mean_loss "
    "test_findings::test_class_rows_fall_or_are_marked benchmarks/grids/cifar10.toml",
    "5 second retrained": "bench/test_bench::test_results_and_table test_findings::test_scenarios_tell_something",
    "6 attack": "audit/test_mia::test_equals_scikit_learn_called_directly "
    "audit/test_controls::test_attack_reads_retrained_and_never_trained_data_alike "
    "unlearn/test_attack::test_a_retrained_network_has_not_seen_the_forget_set_and_the_original_has",
    "7 controls": "audit/test_controls::test_utility_controls_fail audit/test_controls::test_doing_nothing_fails_under",
    "8 one command": "bench/test_bench::test_kill_and_resume_over_processes "
    "test_findings::test_committed_cells_are_those_of_the_committed_grid "
    "test_findings::test_torch_and_file_agree_or_are_marked "
    "test_findings::test_the_readme_table_is_that_of_the_committed_cells",
    "9 closed test split": "bench/test_bench::test_a_tuner_that_peeks_is_caught",
    "10 smoke bench": "bench/test_grids::test_the_smoke_grid_takes_minutes",
    "2.4 always printed": "bench/test_bench::test_what_stands_beside_the_headline",
    "3.2 equal budgets": "bench/test_bench::test_draws_are_equal_in_number_nested_and_in_range "
    "bench/test_variants::test_a_variant_is_drawn_as_its_method_with_its_settings_on_top",
    "3.2 other forget sets in tuning": "bench/test_grids::test_tuning_forgets_other_samples_or_the_page_names_the_grid",
    "3.2 cost cap": "bench/test_bench::test_tuning_runs_end_at_the_cap",
    "3.2 no_reference": "bench/test_variants::test_without_a_reference_j_ranks_whatever_the_gap",
    "3.3 stop rule and frozen statistics, both tables": "bench/test_grids::"
    "test_the_three_grids_of_digits_differ_in_one_setting_each test_findings::test_switches_stand_side_by_side "
    "benchmarks/grids/digits.toml benchmarks/grids/digits_stop.toml benchmarks/grids/digits_frozen.toml",
    "3.2 what tuning cost": "report/test_grid::test_every_figure_of_the_tables_is_there",
    "one short file a method": "test_house::test_a_method_is_one_short_file",
    "a killed grid goes on": "bench/test_bench::test_kill_and_resume_over_processes "
    "bench/test_bench::test_running_again_computes_nothing",
    "page and table": "cli/test_bench_report::test_report_makes_the_page_and_the_readme_table",
    "README is current": "test_findings::test_the_readme_table_is_that_of_the_committed_cells "
    "test_docs::test_generated_tables_are_up_to_date",
    "full.toml": "bench/test_grids::test_the_full_grid_is_the_protocol "
    "bench/test_grids::test_two_cells_of_the_full_grid",
    "pages say what cells say": "test_findings::test_the_cells_say_what_the_pages_say",
    "a page a method": "test_docs::test_a_method_page_has_all_its_parts",
}

EC_TRAPS: dict[str, str] = {
    "T1 CKA 0 as the goal": "audit/test_cka::test_retrained_passes_and_controls_do_not",
    "T2 logits alone": "audit/test_cka::test_head_only_forgetting_passes_on_accuracy_alone",
    "T3 biased CKA": "tasks/test_similarity::test_independent_features",
    "T4 one class": "unlearn/test_ec::test_single_class_with_the_forget_form_is_refused "
    "unlearn/test_contrastive::test_one_class_has_no_signal_in_the_forget_form",
    "T5 no positives": "unlearn/test_contrastive::test_whole_class_forgotten_takes_positives_from_the_forget_batch",
    "T6 sum over anchors": "unlearn/test_contrastive::test_values_by_hand",
    "T7 overflow": "unlearn/test_contrastive::test_finite_at_a_small_temperature_in_float32",
    "T8 statistics": "unlearn/test_ec::test_batchnorm_modes "
    "unlearn/test_ec::test_retain_only_statistics_come_from_retain_batches",
    "T9 shorter loader": "unlearn/test_ec::test_t09_steps_follow_the_longer_loader",
    "T10 modules exported": "unlearn/test_ec::test_modules_leave_no_trace",
    "T11 modules kept": "unlearn/test_ec::test_cached_modules_give_the_same_run_and_are_purged",
    "T12 state between runs": "unlearn/test_ec::test_t12_two_runs_in_one_process_equal_two_processes",
    "T13 random requests": "unlearn/test_ec::test_random_requests_warn benchmarks/grids/cifar10.toml",
    "T14 gradient to retain": "unlearn/test_contrastive::test_no_gradient_reaches_retain_features",
    "T15 judged on its shots": "audit/test_recovery::test_shots_and_judged_share_no_sample",
}

EC: dict[str, str] = {
    "1 losses": "unlearn/test_contrastive::test_values_by_hand unlearn/test_contrastive::test_bounds_hold "
    "unlearn/test_contrastive::test_gradients_equal_finite_differences",
    "2 CKA": "tasks/test_similarity::test_identity_and_invariances "
    "audit/test_predictors::test_features_compared_are_those_of_network_and_file",
    "3 toy D": "bench/test_ec::test_what_the_specification_expects_holds_in_the_committed_figures "
    "bench/test_ec::test_the_committed_tables_are_those_of_the_committed_figures benchmarks/bench_ec.py",
    "4 over-erasure": "bench/test_ec::test_what_the_specification_expects_holds_in_the_committed_figures "
    "benchmarks/bench_ec.py benchmarks/bench_ec_cnn.py "
    "audit/test_cka::test_retrained_passes_and_controls_do_not "
    "unlearn/test_ec::test_stop_rule_on_cka",
    "5 inside bases": "unlearn/test_ec::test_inside_other_methods benchmarks/bench_ec_cnn.py",
    "6 ablation": "benchmarks/grids/ablation_ec.toml benchmarks/bench_ec.py",
    "7 controls": "audit/test_cka::test_retrained_passes_and_controls_do_not "
    "bench/test_ec::test_what_the_specification_expects_holds_in_the_committed_figures",
    "8 stage drop": "unlearn/test_ec::test_modules_leave_no_trace",
    "9 modules": "unlearn/test_ec::test_cached_modules_give_the_same_run_and_are_purged",
    "10 cost": "benchmarks/bench_ec.py benchmarks/bench_ec_cnn.py",
    "11 network and file": "audit/test_predictors::test_features_compared_are_those_of_network_and_file "
    "benchmarks/bench_ec_cnn.py",
    "towards the retrained network": "test_findings::"
    "test_ec_lowers_the_similarity_of_a_forgotten_class_towards_the_retrained_networks",
}

OEU_TRAPS: dict[str, str] = {
    "T1 E1 is flat": "unlearn/test_oeu::test_t01_e1_does_nothing_on_a_certain_network_and_e2_does",
    "T2 projection under momentum": "unlearn/test_oeu::test_t02_trace_and_guarantee_agree",
    "T3 scalars": "unlearn/test_oeu::test_t03_one_element_tensors_are_named_under_scope_tensor_and_kept_under_layer",
    "T4 before the last micro-batch": "unlearn/test_oeu::test_t04_micro_batches_give_the_same_update "
    "unlearn/test_oeu::test_t04_two_processes_give_the_same_update",
    "T5 two points": "unlearn/test_oeu::test_t05_both_losses_see_the_same_parameters",
    "T6 statistics": "unlearn/test_oeu::test_t06_frozen_statistics_stay_bit_identical",
    "T7 last step, test data": "unlearn/test_base::test_t07_test_and_audit_parts_are_never_read "
    "unlearn/test_stopping::test_t07_a_non_monotone_trajectory_ends_at_the_right_snapshot",
    "T8 over-forgetting": "unlearn/test_oeu::test_t08_run_to_convergence_is_judged_over_forgotten "
    "unlearn/test_stopping::test_t08_over_forgetting_is_a_failure_and_rolls_back",
    "T9 no code moves": "unlearn/test_base::test_t09_nothing_changed_is_an_error",
    "T10 stale views": "kernels/test_arena::test_replaced_gradients_are_detected",
    "T11 clipping": "test_hyper::test_t11_clipping_that_changes_the_direction_is_refused",
    "T12 unequal loaders": "unlearn/test_oeu::test_t12_samples_seen_are_counted",
    "T13 padding": "unlearn/test_entropy::test_t13_padding_does_not_count",
    "T14 stop and audit halves": "unlearn/test_oeu::test_t14_stop_and_audit_halves_share_no_content",
}

OEU: dict[str, str] = {
    "1 gradients and norms": "unlearn/test_entropy::test_gradients_equal_finite_differences_and_closed_forms "
    "unlearn/test_entropy::test_norms_of_the_logit_gradient unlearn/test_entropy::test_huge_logits_stay_finite "
    "unlearn/test_entropy::test_both_forms_are_divergences_from_uniform",
    "2 theorem": "unlearn/test_theorem::test_interference_is_second_order_in_a_float_network",
    "3 quantized": "unlearn/test_theorem::test_projection_pays_in_quantized_form_and_a_random_vector_does_not",
    "4 orthogonal": "unlearn/test_theorem::test_projected_vector_is_orthogonal_in_every_unit_and_to_every_row",
    "5 update and metric": "unlearn/test_theorem::"
    "test_t02_the_applied_forget_part_is_orthogonal_only_where_it_is_promised",
    "6 oracle, resume": "unlearn/test_oeu::test_equals_a_plain_float64_oracle "
    "unlearn/test_contract::test_resume_after_sigkill",
    "7 speakers": "benchmarks/bench_demo.py benchmarks/bench_verdicts.py",
    "8 matched": "benchmarks/bench_oeu_matched.py",
    "9 random 10 %": "benchmarks/grids/cifar10.toml benchmarks/grids/cifar10_w4a4.toml",
    "10 stop rule": "unlearn/test_stopping::test_t07_a_non_monotone_trajectory_ends_at_the_right_snapshot "
    "unlearn/test_stopping::test_random_band_covers_retrained_networks "
    "unlearn/test_stopping::test_controls_that_must_fail",
    "11 rho2": "unlearn/test_theorem::test_noise_estimator_agrees_with_the_full_retain_gradient",
    "12 cost": "benchmarks/bench_step.py",
}

SMI_TRAPS: dict[str, str] = {
    "T1 two minima": "audit/test_mixture::test_t1_equal_covariances_have_two_minima",
    "T2 cov is biased": "audit/test_mixture::test_t2_cov_is_biased_where_mmd_is_not",
    "T3 diagonal kept": "audit/test_mixture::test_t3_the_diagonal_pulls_to_one_half",
    "T4 one normaliser": "audit/test_mixture::test_t4_one_normaliser_is_biased_on_stratified_sets "
    "audit/test_mixture::test_t4_blockwise_bias",
    "T5 no signal": "audit/test_smi::test_t5_no_membership_signal_is_inconclusive",
    "T6 means alone": "audit/test_smi::test_smi_is_registered_and_needs_no_reference_to_decide",
    "T7 bandwidth": "audit/test_mixture::test_t7_kernel_and_scale_never_look_at_u_nor_change "
    "audit/test_mixture::test_t7_one_kernel_width_in_every_call",
    "T8 no distances": "audit/test_mixture::test_t8_equal_features_and_coarse_integers "
    "audit/test_smi::test_t8_equal_features_decide_nothing",
    "T9 cancellation": "audit/test_mixture::test_t9_a_large_offset_changes_nothing",
    "T10 class shares": "audit/test_mixture::test_t10_class_shares_are_not_read_as_forgetting",
    "T11 train mode, overlap": "audit/test_smi::test_t11_two_readings_are_equal_bit_for_bit_and_read_once "
    "audit/test_smi::test_t11_shared_content_is_refused "
    "audit/test_predictors::test_reading_changes_neither_state_nor_mode",
    "T12 reference range": "audit/test_smi::test_t12_cov_has_a_reference_range_and_no_interval",
    "T13 tiny sets": "audit/test_mixture::test_t13_tiny_sets_run audit/test_smi::test_t13_held_out_too_small_to_halve",
}

SMI: dict[str, str] = {
    "1 mean error": "audit/test_mixture::test_acceptance_1_mean_error_of_mmd "
    "audit/test_mixture::test_acceptance_1_quick",
    "2 quartic": "audit/test_mixture::test_acceptance_2_the_quartic_is_solved_exactly "
    "audit/test_mixture::test_t1_equal_covariances_have_two_minima",
    "3 kernel sums": "audit/test_kernels_mmd::test_gram_times_equals_the_dense_formula "
    "audit/test_kernels_mmd::test_memory_is_that_of_some_rows",
    "4 permutations": "audit/test_mixture::test_acceptance_4_size_and_power_of_the_permutation_test",
    "5 coverage": "audit/test_mixture::test_acceptance_5_coverage",
    "6 off the mixture": "audit/test_mixture::test_acceptance_6_size_and_power_off_the_mixture",
    "7 trained network": "audit/test_smi_trained::"
    "test_acceptance_7_and_10_a_trained_network_passes_where_membership_shows "
    "audit/test_smi_trained::"
    "test_acceptance_7_in_short_the_original_is_near_0_and_a_retrained_network_near_1 benchmarks/bench_smi.py",
    "8 controls": "audit/test_contract::test_r13_collapse_never_passes "
    "audit/test_controls::test_utility_controls_fail benchmarks/bench_smi.py",
    "9 network, file, C": "audit/test_smi_trained::test_acceptance_9_network_file_and_c_give_one_share",
    "10 side by side": "audit/test_attacks::test_side_by_side_names_cost_and_models "
    "test_audit_findings::test_what_smi_costs_beside_four_shadow_models benchmarks/bench_smi.py",
    "11 seeds and order": "audit/test_smi::test_acceptance_11_shuffled_samples_give_the_same_json "
    "audit/test_mixture::test_acceptance_11_same_seed_same_numbers_and_the_order_does_not_matter "
    "audit/test_contract::test_r14_same_seed_same_json",
}

EVE_TRAPS: dict[str, str] = {
    "T1 no gradient": "audit/test_eve_craft::"
    "test_t1_the_alignment_term_has_a_gradient_and_the_released_objective_ignores_it "
    "audit/test_eve_arms::test_acceptance_1_and_2_eight_seeds_at_matched_utility",
    "T2 target erased": "audit/test_eve_craft::test_t2_a_target_in_the_erased_batch_is_refused "
    "audit/test_eve::test_t2_a_target_among_the_forget_samples_is_refused",
    "T3 radius, hard sign": "audit/test_eve::test_t3_the_hard_sign_is_refused_and_ranges_are_checked "
    "audit/test_eve_craft::test_t3_t6_the_request_is_in_the_ball_on_the_grid_and_keeps_its_cosine",
    "T4 retain overlaps": "audit/test_eve_arms::test_t4_the_arms_see_disjoint_sets",
    "T5 fused operator": "quant/test_freeze::"
    "test_t5_the_fused_learnable_operator_is_named_and_the_error_says_what_to_use",
    "T6 below one step": "audit/test_eve_craft::test_t6_a_radius_below_one_input_step_is_refused",
    "T7 mixed kinds": "audit/test_eve::test_t7_mixed_artefact_kinds_are_refused",
    "T8 past the budget": "audit/test_eve::test_t8_a_collapsed_network_fails_as_over_although_its_target_flips",
    "T9 state moves": "audit/test_eve_craft::test_t9_the_network_is_bit_for_bit_what_it_was_in_either_mode",
    "T10 small differences": "audit/test_eve_craft::test_t10_directional_derivative_of_the_craft_loss",
    "T11 lost update": "audit/test_eve_arms::test_t11_an_update_below_one_step_of_the_codes_cannot_pass",
    "T12 many targets": "audit/test_eve_craft::test_t12_several_targets_warn_with_the_measured_rates",
    "T13 times": "audit/test_eve::test_t13_the_table_times_craft_unlearn_and_verify_apart_for_every_arm",
}

EVE: dict[str, str] = {
    "1 eight seeds": "audit/test_eve_arms::test_acceptance_1_and_2_eight_seeds_at_matched_utility "
    "test_audit_findings::test_every_bar_of_the_erasure_check_was_reached benchmarks/bench_eve.py",
    "2 released objective": "audit/test_eve_arms::test_acceptance_1_and_2_eight_seeds_at_matched_utility",
    "3 artefacts": "audit/test_eve_arms::test_acceptance_3_every_artefact_gives_the_same_flips "
    "audit/test_eve_arms::test_acceptance_3_in_short_every_artefact_gives_the_same_flips",
    "4 derivative": "audit/test_eve_craft::test_t10_directional_derivative_of_the_craft_loss",
    "5 collapse, same bytes": "audit/test_eve::"
    "test_t8_a_collapsed_network_fails_as_over_although_its_target_flips "
    "audit/test_eve::test_identical_networks_never_pass_and_say_so",
    "6 calibration": "audit/test_eve::test_no_calibration_is_inconclusive "
    "audit/test_eve::test_a_foreign_calibration_is_inconclusive audit/test_eve::test_p0_above_alpha_is_inconclusive",
    "7 grid": "audit/test_eve_request::test_snapped_samples_lie_on_the_grid_in_the_ball_and_in_the_range "
    "audit/test_eve_craft::test_t3_t6_the_request_is_in_the_ball_on_the_grid_and_keeps_its_cosine",
    "8 seeds": "audit/test_eve_craft::test_the_same_seed_gives_the_same_bytes_and_another_seed_others "
    "audit/test_eve_craft::test_t9_the_network_is_bit_for_bit_what_it_was_in_either_mode",
    "9 memory": "audit/test_eve_craft::test_crafting_takes_at_most_four_times_the_memory_of_a_training_step",
    "10 statistics": "audit/test_eve_stats::test_upper_bounds_are_those_quoted "
    "audit/test_eve_stats::test_sign_test_values_are_those_quoted",
    "11 SMI beside it": "cli/test_eve_cli::test_a_faithful_update_passes_on_the_int8_file_and_smi_stands_beside "
    "cli/test_eve_cli::test_audit_reads_the_request_beside_the_other_audits",
}

TRUSTED: dict[str, str] = {
    "recovery: ends of the scale": "audit/test_recovery::test_random_features_are_the_lower_end_of_the_scale",
    "relearn: hidden knowledge": "audit/test_relearn::test_hidden_knowledge_passes_accuracy_and_fails_relearning",
    "relearn: precondition": "audit/test_relearn::test_what_is_not_forgotten_fails_without_training",
    "relearn, fewer bits: exact bound": "audit/test_relearn::test_intervals_are_never_of_width_zero",
    "fewer bits: rounding cells": "audit/test_quant_recovery::test_forgetting_inside_the_rounding_cells_is_found",
    "suites": "cli/test_journeys::test_a_strict_suite_runs_every_audit_on_network_and_file "
    "cli/test_journeys::test_an_audit_prints_verdicts_and_the_code_changes",
    "a picture and what it cannot show": "report/test_pictures::test_every_registered_audit_has_a_picture "
    "report/test_pictures::test_sections_say_what_was_measured_and_what_it_cannot_show",
    "networks of known truth": "test_audit_findings::test_what_the_pages_say_of_networks_of_known_truth "
    "test_docs::test_an_audit_page_names_the_networks_that_the_audit_did_not_tell_apart benchmarks/bench_audits.py",
    "95 % of cells": "bench/test_agreement::test_the_committed_table_is_that_of_the_committed_cells "
    "bench/test_agreement::test_every_cell_that_disagrees_is_explained_by_what_was_measured "
    "benchmarks/bench_agreement.py",
    "3 s, 500 MB": "audit/test_smi::test_the_whole_audit_of_three_sets_of_1000_keeps_the_bar",
    "no fake passes standard": "audit/test_cka::test_fakes_never_pass_the_standard_suite "
    "audit/test_controls::test_the_standard_suite_passes_neither_a_collapsed_nor_a_mislabelled_network "
    "test_audit_findings::test_fakes_never_pass_and_strict_catches_the_last_layer",
    "strict catches the last layer": "audit/test_cka::test_head_only_forgetting_passes_on_accuracy_alone "
    "test_audit_findings::test_fakes_never_pass_and_strict_catches_the_last_layer",
}

TABLES = {"SMI traps": SMI_TRAPS, "SMI": SMI, "EVE traps": EVE_TRAPS, "EVE": EVE, "audits": TRUSTED,
          "protocol traps": PROTOCOL_TRAPS, "protocol": PROTOCOL, "EC traps": EC_TRAPS, "EC": EC,
          "OEU traps": OEU_TRAPS, "OEU": OEU}  # fmt: skip


def functions(path: Path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("name", list(TABLES))
def test_every_line_has_its_test_or_script(name: str) -> None:
    missing = []
    for line, places in TABLES[name].items():
        for place in places.split():
            file, _, function = place.partition("::")
            path = ROOT / file if file.startswith("benchmarks/") else ROOT / "tests" / f"{file}.py"
            if not path.exists() or (function and function not in functions(path)):
                missing.append(f"{line}: {place}")
    assert not missing


@pytest.mark.parametrize(
    ("name", "count"),
    [("protocol traps", 23), ("EC traps", 15), ("OEU traps", 14), ("SMI traps", 13), ("EVE traps", 13)],
)
def test_no_trap_is_left_out(name: str, count: int) -> None:
    assert [line.split()[0] for line in TABLES[name]] == [f"T{i}" for i in range(1, count + 1)]


@pytest.mark.parametrize(("name", "count"), [("protocol", 10), ("EC", 11), ("OEU", 12)])
def test_no_line_of_the_acceptance_is_left_out(name: str, count: int) -> None:
    own = [line.split()[0] for line in TABLES[name]]
    assert [n for n in own if n.isdigit()] == [str(i) for i in range(1, count + 1)]
